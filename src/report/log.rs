//! Progress of a run: a bar on a terminal, plain lines elsewhere, both on standard error, since standard output is for results.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::console::Look;
use crate::error::is_control;

/// Formatted numbers: `Count(25000)` is 25,000 and `Bytes(1610612736)` is 1.50 GiB.
pub use indicatif::{HumanBytes as Bytes, HumanCount as Count};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Rates and the time left are computed over this window.
const WINDOW: Duration = Duration::from_secs(10);
const BAR_WIDTH: u64 = 10;

/// Columns of a terminal.
pub const WIDTH: usize = 80;

/// Progress of one task, shown as
///
/// ```text
/// training [####------] 1,250/3,126  12m 03s left  loss 0.3479 lr 1.2e-5  22,310 tokens/s  143 texts/s
/// ```
///
/// It may be used from many threads. If it is dropped before [`Progress::finish`], the bar disappears, so that an error message
/// is the last output.
pub struct Progress {
    what: String,
    total: Option<u64>,
    units: Vec<String>,
    sink: Sink,
    /// Least time between two draws.
    every: Duration,
    begin: Instant,
    /// Count of the first unit before this process began.
    resumed_at: u64,
    state: Mutex<State>,
}

enum Sink {
    Bar(ProgressBar),
    Lines(Mutex<Box<dyn Write + Send>>),
}

struct State {
    /// The count of each unit.
    counts: Vec<u64>,
    note: String,
    drawn: Instant,
    /// Past counts, newest last.
    samples: VecDeque<(Instant, Vec<u64>)>,
}

impl Progress {
    /// A task called `what` with a `total` in the first of `units`; `None` if it is unknown. If there are other units, their
    /// rates are shown instead of the first one's.
    pub fn new(what: &str, total: impl Into<Option<u64>>, units: &[&str]) -> Progress {
        if crate::console::is_quiet() {
            return Progress::lines(Box::new(std::io::sink()), Duration::MAX, what, total, units);
        }
        let target = ProgressDrawTarget::stderr();
        // indicatif hides the bar on a dumb terminal, or without one.
        if target.is_hidden() {
            Progress::lines(Box::new(std::io::stderr()), Duration::from_secs(5), what, total, units)
        } else {
            Progress::bar(target, what, total, units)
        }
    }

    /// Draws a bar on `target`.
    pub fn bar(target: ProgressDrawTarget, what: &str, total: impl Into<Option<u64>>, units: &[&str]) -> Progress {
        // Only the message is truncated to the width of the terminal, so it holds the whole line.
        let style = ProgressStyle::with_template("{wide_msg}").expect("a valid template");
        let bar = ProgressBar::with_draw_target(None, target).with_style(style);
        Progress::to(Sink::Bar(bar), Duration::from_millis(100), what, total.into(), units)
    }

    /// Writes lines to `out`, at most one per `every`, and always the last one.
    pub fn lines(
        out: Box<dyn Write + Send>,
        every: Duration,
        what: &str,
        total: impl Into<Option<u64>>,
        units: &[&str],
    ) -> Progress {
        Progress::to(Sink::Lines(Mutex::new(out)), every, what, total.into(), units)
    }

    fn to(sink: Sink, every: Duration, what: &str, total: Option<u64>, units: &[&str]) -> Progress {
        assert!(!units.is_empty(), "a task counts something");
        let begin = Instant::now();
        let counts = vec![0; units.len()];
        let state = State { counts: counts.clone(), note: String::new(), drawn: begin, samples: [(begin, counts)].into() };
        let units = units.iter().map(|unit| unit.to_string()).collect();
        Progress { what: what.to_string(), total, units, sink, every, begin, resumed_at: 0, state: Mutex::new(state) }
    }

    /// Starts with `done` of the first unit, as in a resumed run; rates exclude them.
    pub fn resumed_at(mut self, done: u64) -> Progress {
        self.resumed_at = done;
        let state = self.state.get_mut().expect("no thread panicked while it counted");
        state.counts[0] = done;
        state.samples[0].1[0] = done;
        self
    }

    /// Adds to the counts, in the order of the units.
    pub fn add(&self, counts: &[u64]) {
        let mut state = self.state();
        for (sum, count) in state.counts.iter_mut().zip(counts) {
            *sum += count;
        }
        let now = Instant::now();
        if now.duration_since(state.drawn) >= self.every {
            self.draw(&mut state, now);
        }
    }

    /// Text beside the counts from the next draw on, such as `loss 0.3479 lr 4.2e-5`.
    pub fn note(&self, note: impl Into<String>) {
        self.state().note = note.into();
    }

    /// Prints a line immediately, above the bar.
    pub fn println(&self, line: &str) {
        match &self.sink {
            Sink::Bar(bar) => bar.println(line),
            // A full disk or a closed pipe on standard error does not end a run.
            Sink::Lines(out) => drop(writeln!(out.lock().expect("no thread panicked while it wrote"), "{line}")),
        }
    }

    /// Time since the task began.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Removes the bar, prints a last line with the rates of the whole task, and `summary` unless it is empty.
    pub fn finish(self, summary: &str) {
        let elapsed = self.elapsed();
        let state = self.state();
        let first = std::iter::once(self.resumed_at).chain(std::iter::repeat(0));
        let mut rates: Vec<f64> =
            state.counts.iter().zip(first).map(|(&c, from)| (c - from) as f64 / elapsed.as_secs_f64()).collect();
        // There was nothing left to do.
        if rates.iter().all(|&rate| rate == 0.0) {
            rates.clear();
        }
        let columns = if let Sink::Bar(_) = self.sink { Look::of_stderr().columns } else { None };
        self.println(&self.status(&state, "", &format!("in {}", duration(elapsed)), &rates, columns));
        drop(state);
        self.dismiss(summary);
    }

    /// Like [`Progress::finish`], but without the rates of a task so short that they are noise.
    pub fn done(self, summary: &str) {
        match self.elapsed() < Duration::from_secs(1) {
            true => self.dismiss(summary),
            false => self.finish(summary),
        }
    }

    /// Removes the bar, and prints `summary` alone, unless it is empty.
    fn dismiss(self, summary: &str) {
        if !summary.is_empty() {
            self.println(summary);
        }
        if let Sink::Bar(bar) = &self.sink {
            bar.finish_and_clear();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked while it counted")
    }

    fn draw(&self, state: &mut State, now: Instant) {
        state.drawn = now;
        let rates = recent_rates(&mut state.samples, now, &state.counts);
        let left = self.total.map(|total| total.saturating_sub(state.counts[0]) as f64 / rates[0]);
        // Without progress in the window, the time left is infinite and not shown.
        let left = left.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let left = left.map(|left| format!("{} left", duration(left))).unwrap_or_default();
        match &self.sink {
            Sink::Lines(_) => self.println(&self.status(state, "", &left, &rates, None)),
            Sink::Bar(bar) => {
                let filled = self.total.map(|total| state.counts[0].min(total) * BAR_WIDTH / total.max(1));
                let drawn = filled.map(|filled| format!("[{:-<1$}]", "#".repeat(filled as usize), BAR_WIDTH as usize));
                let columns = Look::of_stderr().columns;
                bar.set_message(self.status(state, &drawn.unwrap_or_default(), &left, &rates, columns));
            }
        }
    }

    /// The line, without the last parts that have no room in so many columns.
    fn status(&self, state: &State, bar: &str, time: &str, rates: &[f64], columns: Option<usize>) -> String {
        let mut line = self.what.clone();
        if !bar.is_empty() {
            line += &format!(" {bar}");
        }
        line += &format!(" {}", Count(state.counts[0]));
        if let Some(total) = self.total {
            line += &format!("/{}", Count(total));
        }
        let beside = usize::from(self.units.len() > 1);
        let rates = self.units.iter().zip(rates).skip(beside).map(|(unit, &per_second)| format!("{} {unit}/s", rate(per_second)));
        let notes = state.note.split("  ").map(String::from);
        for part in [time.to_string()].into_iter().chain(notes).chain(rates).filter(|part| !part.is_empty()) {
            if columns.is_some_and(|columns| line.chars().count() + 2 + part.chars().count() > columns) {
                break;
            }
            line += &format!("  {part}");
        }
        line
    }
}

/// Adds a sample, removes those older than the window, and returns each count's rate since the oldest left.
pub fn recent_rates(samples: &mut VecDeque<(Instant, Vec<u64>)>, now: Instant, counts: &[u64]) -> Vec<f64> {
    samples.push_back((now, counts.to_vec()));
    // The oldest is kept until the next one is as old as the window, so that steps longer than the window have a rate too.
    while samples.len() > 2 && now.duration_since(samples[1].0) >= WINDOW {
        samples.pop_front();
    }
    let (then, past) = &samples[0];
    let seconds = now.duration_since(*then).as_secs_f64();
    counts.iter().zip(past).map(|(&count, &past)| (count - past) as f64 / seconds).collect()
}

/// A count with its noun: "1 update", "25,000 updates", "2 classes".
pub fn counted(count: usize, noun: &str) -> String {
    let ending = match count {
        1 => "",
        _ if noun.ends_with(['s', 'x', 'h']) => "es",
        _ => "s",
    };
    format!("{} {noun}{ending}", Count(count as u64))
}

/// A metric with four decimals; `-` if it is undefined.
pub fn four(value: Option<f64>) -> String {
    value.map_or("-".to_string(), |value| format!("{value:.4}"))
}

/// A rate with at least three digits: 2,013 or 14.2 or 0.31; `-` if no time has passed.
pub fn rate(per_second: f64) -> String {
    match per_second {
        x if !x.is_finite() => "-".to_string(),
        x if x >= 99.95 => Count(x.round() as u64).to_string(),
        x if x >= 9.995 => format!("{x:.1}"),
        x => format!("{x:.2}"),
    }
}

/// 4.2s, 42s, 1m 23s or 2h 05m.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 9.95 {
        return format!("{seconds:.1}s");
    }
    match seconds.round() as u64 {
        s if s < 60 => format!("{s}s"),
        s if s < 3600 => format!("{}m {:02}s", s / 60, s % 60),
        s => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
    }
}

/// "3 texts truncated to 512 tokens"; "" for none.
pub fn truncated(texts: usize, max_length: usize) -> String {
    if texts > 0 { format!("{} truncated to {max_length} tokens", counted(texts, "text")) } else { String::new() }
}

/// At most this many characters of a text, on one line, up to the end of a word.
pub fn beginning(text: &str, most: usize) -> String {
    let line = text.replace(is_control, " ");
    if line.chars().count() <= most {
        return line;
    }
    let cut: String = line.chars().take(most - 1).collect();
    // A word that fills the line is cut.
    let end = cut.trim_end().rfind(' ').filter(|end| 2 * end > cut.len()).unwrap_or(cut.len());
    format!("{}…", cut[..end].trim_end())
}

/// At most `most` characters on one line.
pub fn shortened(text: &str, most: usize) -> String {
    let line = text.replace(is_control, " ");
    match line.char_indices().nth(most) {
        Some(_) => line.chars().take(most - 1).chain(['…']).collect(),
        None => line,
    }
}

/// Names of classes, cut to the room that the figures of a class leave on standard output.
pub fn fitting(names: &[String]) -> Vec<String> {
    // Those of `Metrics::classification_report` take 44 columns.
    let room = Look::of_stdout().columns.unwrap_or(WIDTH).saturating_sub(44).max(12);
    names.iter().map(|name| shortened(name, room)).collect()
}

/// Aligned rows without control characters, one per line: the first column to the left, the others, which are numbers, to the right.
pub fn table<Row: AsRef<[String]>>(rows: &[Row]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.as_ref().iter().map(|cell| cell.replace(is_control, " ")).collect()).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cell = |(column, (cell, &width)): (usize, (&String, &usize))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        };
        let cells: Vec<String> = row.iter().zip(&widths).enumerate().map(cell).collect();
        text += cells.join("  ").trim_end();
        text += "\n";
    }
    text
}
