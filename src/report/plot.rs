//! Plots as SVG: curves and histograms on two axes, a confusion matrix, horizontal bars, densities of classes. Text is text,
//! and its colour and that of the axes follow the reader's light or dark scheme, in a file and within a page.

use std::fmt::Write;

use super::density::{Density, MARGIN};
use super::log::{Count, shortened};

/// Distinguishable on white and on black.
const COLOURS: [&str; 8] = ["#3b7dd8", "#e07b39", "#2e9e6b", "#c94f7c", "#8d6cc9", "#a8862a", "#3aa3b8", "#7f8790"];
/// Of right and of wrong predictions: distinguishable by readers who are colour-blind, too.
pub const RIGHT: &str = "#009e73";
pub const WRONG: &str = "#d55e00";
/// Dashes of the lines, in the order of the colours, by which those that coincide are told apart.
const DASHES: [&str; COLOURS.len()] = ["none", "8 5", "2 6", "10 4 2 4", "16 6", "5 5", "10 4 2 4 2 4", "1 5"];
const STYLE: &str = ".plot{color:#1f2328;background:#fff;font:12px system-ui,sans-serif}.plot text{fill:currentColor}\
.plot .title{font-weight:600;font-size:14px}.plot .small{font-size:10px}.plot .name{font-weight:600}.plot .faint{stroke:currentColor;opacity:.14}\
@media(prefers-color-scheme:dark){.plot{color:#e6e6e6;background:#16181c}}";
const WIDTH: f64 = 480.0;
/// Width of a character of 12 pixels, generously.
const CHARACTER: f64 = 6.8;
/// Resolution per pixel of points stored as integers, if there are too many for decimals.
const FINE: f64 = 4.0;

/// Curves and bars on two axes.
pub struct Plot {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

pub struct Axis {
    pub label: String,
    /// The least range shown; wider if the data is.
    pub range: Option<[f64; 2]>,
}

pub struct Series {
    /// Name in the legend; empty to leave it out.
    pub name: String,
    /// A point that is not finite leaves a gap.
    pub points: Vec<[f64; 2]>,
    pub shape: Shape,
    /// Small text at each point, or empty.
    pub notes: Vec<String>,
    /// `None` for the next of the colours.
    pub colour: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Shape {
    Line,
    /// A line with a dot at every point.
    Dots,
    /// Dashed and grey, for the ideal or the chance level.
    Guide,
    /// Bars from 0 to y, and from x to x plus this width.
    Bars(f64),
}

impl Axis {
    pub fn new(label: &str) -> Axis {
        Axis { label: label.to_string(), range: None }
    }

    pub fn unit(label: &str) -> Axis {
        Axis { label: label.to_string(), range: Some([0.0, 1.0]) }
    }

    pub fn from_zero(label: &str) -> Axis {
        Axis { label: label.to_string(), range: Some([0.0, 0.0]) }
    }

    /// First and last value shown, the ticks between them, and their format. `whole`: the axis ends at ticks.
    fn scale(&self, values: impl Iterator<Item = f64>, whole: bool) -> ([f64; 2], Vec<f64>, impl Fn(f64) -> String) {
        let all = values.filter(|value| value.is_finite()).chain(self.range.into_iter().flatten());
        let (mut low, mut high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if low == high {
            // A margin around a single value, below 0 only for negative values.
            let room = if low == 0.0 { 1.0 } else { low.abs() / 2.0 };
            (low, high) = (if low == 0.0 { 0.0 } else { low - room }, high + room);
        }
        let rough = (high - low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= rough * 0.999);
        let step = step.unwrap_or(rough);
        if whole && self.range.is_none_or(|[from, to]| from == to) {
            (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        }
        let ticks = (0..=((high - low) / step + 1e-6) as usize).map(|i| ((low / step).ceil() + i as f64) * step);
        let ticks = ticks.filter(|tick| *tick <= high + step * 1e-6).collect();
        let large = low.abs().max(high.abs());
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let format = move |value: f64| match () {
            () if value.abs() < step * 1e-6 => "0".to_string(),
            () if !(1e-3..1e6).contains(&large) => format!("{:.1e}", value).replace(".0e", "e"),
            () => format!("{value:.digits$}"),
        };
        ([low, high], ticks, format)
    }
}

impl Series {
    pub fn new(name: impl Into<String>, shape: Shape, points: Vec<[f64; 2]>) -> Series {
        Series { name: name.into(), points, shape, notes: Vec::new(), colour: None }
    }

    pub fn coloured(self, colour: &'static str) -> Series {
        Series { colour: Some(colour), ..self }
    }
}

impl Plot {
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| series.points.iter().map(move |point| (series, point)));
        let ends = points().flat_map(|(series, point)| match series.shape {
            Shape::Bars(width) => vec![point[0], point[0] + width],
            _ => vec![point[0]],
        });
        let ([x0, x1], x_ticks, x_format) = self.x.scale(ends, false);
        let ([y0, y1], y_ticks, y_format) = self.y.scale(points().map(|(_, point)| point[1]), true);
        let widest = y_ticks.iter().map(|&tick| width(&y_format(tick))).fold(0.0, f64::max);
        let (left, right, top, bottom) = (34.0 + widest, WIDTH - 22.0, 36.0, 290.0);
        let x = |value: f64| left + (value - x0) / (x1 - x0) * (right - left);
        let y = |value: f64| bottom - (value - y0) / (y1 - y0) * (bottom - top);

        let mut canvas = Canvas::default();
        canvas.text(WIDTH / 2.0, 20.0, "middle", "title", &self.title);
        for &tick in &y_ticks {
            canvas.line([left, y(tick)], [right, y(tick)], "class=\"faint\"");
            canvas.text(left - 6.0, y(tick) + 4.0, "end", "", &y_format(tick));
        }
        for &tick in &x_ticks {
            canvas.line([x(tick), top], [x(tick), bottom], "class=\"faint\"");
            canvas.text(x(tick), bottom + 16.0, "middle", "", &x_format(tick));
        }
        canvas.line([left, bottom], [right, bottom], "stroke=\"currentColor\"");
        canvas.line([left, top], [left, bottom], "stroke=\"currentColor\"");
        canvas.text((left + right) / 2.0, bottom + 34.0, "middle", "", &self.x.label);
        canvas.turned(14.0, (top + bottom) / 2.0, "middle", &self.y.label);
        let is_data = |(series, point): (&Series, &[f64; 2])| series.shape != Shape::Guide && point.iter().all(|v| v.is_finite());
        if !points().any(is_data) {
            canvas.text((left + right) / 2.0, (top + bottom) / 2.0, "middle", "", "no data");
        }

        let mut legend = Vec::new();
        let mut looks = (0..COLOURS.len()).cycle();
        for series in &self.series {
            let is_plain = series.shape == Shape::Guide || series.colour.is_some();
            let look = if is_plain { 0 } else { looks.next().expect("the looks repeat") };
            let colour = if series.shape == Shape::Guide { "#888" } else { series.colour.unwrap_or(COLOURS[look]) };
            let dashes = if series.shape == Shape::Guide { "5 4" } else { DASHES[look] };
            let marker = (series.shape == Shape::Dots).then_some(look);
            if !series.name.is_empty() {
                let sample = match series.shape {
                    Shape::Bars(_) => Sample::Bar,
                    _ => Sample::Line { dashes, marker },
                };
                legend.push(Key { name: &series.name, colour, sample });
            }
            if let Shape::Bars(width) = series.shape {
                for &[from, value] in series.points.iter().filter(|point| point[1].is_finite() && point[1] != 0.0) {
                    let (wide, high) = (x(from + width) - x(from), y(y0.max(0.0)) - y(value));
                    canvas.rect([x(from), y(value)], [wide, high], colour, 0.85, &format!("{}: {value}", series.name));
                }
                continue;
            }
            let wide = if series.shape == Shape::Guide { 1 } else { 2 };
            let stroke = stroke(colour, wide, dashes);
            for part in series.points.split(|point| point.iter().any(|value| !value.is_finite())) {
                let drawn: Vec<[f64; 2]> = part.iter().map(|&[a, b]| [x(a), y(b)]).collect();
                canvas.path(&drawn, &stroke);
            }
            let mut written: Option<[f64; 3]> = None;
            for (i, &[a, b]) in series.points.iter().enumerate().filter(|(_, point)| point.iter().all(|v| v.is_finite())) {
                if series.shape == Shape::Dots || series.points.len() == 1 {
                    canvas.marker([x(a), y(b)], look, colour);
                }
                if let Some(note) = series.notes.get(i) {
                    // Above the dot, or below it if the note would leave the axes or overlap the one before.
                    let (wide, high) = (0.9 * width(note), 11.0);
                    let covers = |[x0, y0, wide0]: [f64; 3]| x(a) - x0 < (wide + wide0) / 2.0 && (y(b) - 8.0 - y0).abs() < high;
                    let above = y(b) - 8.0 > top && !written.is_some_and(covers);
                    let at = y(b) + if above { -8.0 } else { 16.0 };
                    canvas.text(x(a), at, "middle", "small", note);
                    written = Some([x(a), at, wide]);
                }
            }
        }
        let height = canvas.legend(&legend, left, right, bottom + 56.0);
        canvas.finish(WIDTH, height, &self.title)
    }
}

/// Counts of rows (true classes) in columns (predicted classes), each shaded by its share of the row, right and wrong ones in
/// colours of their own.
pub fn matrix(title: &str, names: &[String], counts: &[Vec<u64>]) -> String {
    let classes = names.len() as f64;
    let cell = (420.0 / classes).clamp(14.0, 84.0);
    let names: Vec<String> = names.iter().map(|name| shortened(name, 18)).collect();
    let widest = names.iter().map(|name| width(name)).fold(0.0, f64::max);
    let (left, top, upright) = (30.0 + widest, 36.0, widest > cell - 6.0);
    let (right, bottom) = (left + classes * cell, top + classes * cell);
    let mut canvas = Canvas::default();
    let full = (right + 16.0).max(width(title) * 1.3 + 20.0).max(260.0);
    canvas.text(full / 2.0, 20.0, "middle", "title", title);
    canvas.turned(14.0, (top + bottom) / 2.0, "middle", "true");
    canvas.rect([left, top], [right - left, bottom - top], "currentColor", 0.04, title);
    for (row, (name, counts)) in names.iter().zip(counts).enumerate() {
        let (y, total) = (top + row as f64 * cell, counts.iter().sum::<u64>().max(1));
        canvas.text(left - 6.0, y + cell / 2.0 + 4.0, "end", "", name);
        for (column, &count) in counts.iter().enumerate() {
            let (x, share) = (left + column as f64 * cell, count as f64 / total as f64);
            let percent = format!("{:.1} %", 100.0 * share);
            let about = format!("{name} predicted as {}: {count} ({percent})", names[column]);
            if count > 0 {
                let colour = if row == column { RIGHT } else { WRONG };
                canvas.rect([x, y], [cell, cell], colour, 0.75 * share, &about);
            }
            let count = count.to_string();
            if width(&count) < cell - 2.0 && cell >= 20.0 {
                let two = width(&percent) < cell;
                canvas.text(x + cell / 2.0, y + cell / 2.0 + if two { -1.0 } else { 4.0 }, "middle", "", &count);
                if two {
                    canvas.text(x + cell / 2.0, y + cell / 2.0 + 13.0, "middle", "small", &percent);
                }
            }
        }
        let x = left + (row as f64 + 0.5) * cell;
        match upright {
            true => canvas.turned(x + 4.0, bottom + 8.0, "end", name),
            false => canvas.text(x, bottom + 16.0, "middle", "", name),
        }
    }
    let label = bottom + if upright { widest + 24.0 } else { 34.0 };
    canvas.text((left + right) / 2.0, label, "middle", "", "predicted");
    canvas.finish(full, label + 12.0, title)
}

/// A group of horizontal bars for each name: one bar per series, followed by its value.
pub fn bars(title: &str, label: &str, names: &[String], series: &[(&str, Vec<u64>)]) -> String {
    let names: Vec<String> = names.iter().map(|name| shortened(name, 24)).collect();
    let most = series.iter().flat_map(|(_, values)| values).copied().max().unwrap_or(0).max(1);
    let left = 16.0 + names.iter().map(|name| width(name)).fold(0.0, f64::max);
    let right = WIDTH - 20.0 - width(&most.to_string());
    let (thick, top) = (12.0, 40.0);
    let group = thick * series.len() as f64 + 8.0;
    let mut canvas = Canvas::default();
    canvas.text(WIDTH / 2.0, 20.0, "middle", "title", title);
    for (row, name) in names.iter().enumerate() {
        let y = top + row as f64 * group;
        canvas.text(left - 6.0, y + group / 2.0, "end", "", name);
        for (i, (what, values)) in series.iter().enumerate() {
            let (y, wide) = (y + i as f64 * thick, (right - left) * values[row] as f64 / most as f64);
            canvas.rect([left, y], [wide, thick - 1.0], COLOURS[i], 0.85, &format!("{name}, {what}: {}", values[row]));
            canvas.text(left + wide + 4.0, y + 9.0, "start", "small", &values[row].to_string());
        }
    }
    let bottom = top + names.len() as f64 * group;
    canvas.line([left, top - 4.0], [left, bottom], "stroke=\"currentColor\"");
    canvas.text((left + right) / 2.0, bottom + 14.0, "middle", "", label);
    let legend: Vec<Key> =
        series.iter().zip(COLOURS).map(|((name, _), colour)| Key { name, colour, sample: Sample::Bar }).collect();
    let height = canvas.legend(&legend, left, right, bottom + 36.0);
    canvas.finish(WIDTH, height, title)
}

/// A horizontal box plot for each name: the box from the first to the third quartile with the median in it, a line from the
/// minimum to the 95th percentile, and the maximum as a number at the right end. `None` for a name without values.
pub fn boxes(title: &str, label: &str, names: &[String], rows: &[Option<[f64; 6]>]) -> String {
    const ROW: f64 = 22.0;
    const TOP: f64 = 54.0;
    let names: Vec<String> = names.iter().map(|name| shortened(name, 24)).collect();
    let longest = |row: &Option<[f64; 6]>| row.map_or("-".to_string(), |[.., max]| Count(max as u64).to_string());
    let (x0, x1) = (0.0, rows.iter().flatten().map(|row| row[4]).fold(1.0, f64::max));
    let shown = Axis { label: String::new(), range: Some([x0, x1]) };
    let (_, ticks, format) = shown.scale([].into_iter(), false);
    let left = 16.0 + names.iter().map(|name| width(name)).fold(0.0, f64::max);
    let right = WIDTH - 24.0 - rows.iter().map(|row| width(&longest(row))).fold(width("longest"), f64::max);
    let x = |value: f64| left + (value - x0) / (x1 - x0) * (right - left);
    let bottom = TOP + rows.len() as f64 * ROW;
    let mut canvas = Canvas::default();
    canvas.text(WIDTH / 2.0, 20.0, "middle", "title", title);
    canvas.text(WIDTH - 8.0, TOP - 6.0, "end", "small", "longest");
    for &tick in &ticks {
        canvas.line([x(tick), TOP - 4.0], [x(tick), bottom], "class=\"faint\"");
        canvas.text(x(tick), bottom + 16.0, "middle", "", &format(tick));
    }
    for (i, (name, row)) in names.iter().zip(rows).enumerate() {
        let middle = TOP + (i as f64 + 0.5) * ROW;
        canvas.text(left - 6.0, middle + 4.0, "end", "", name);
        canvas.text(WIDTH - 8.0, middle + 4.0, "end", "small", &longest(row));
        let Some([min, quartile_1, median, quartile_3, most, max]) = *row else { continue };
        let colour = COLOURS[0];
        canvas.line([x(min), middle], [x(most), middle], &format!("stroke=\"{colour}\" stroke-width=\"2\""));
        let about = format!("{name}: {min}, {quartile_1}, {median}, {quartile_3}, {most}, {max}");
        // Thin boxes stay visible.
        let wide = (x(quartile_3) - x(quartile_1)).max(2.0);
        canvas.rect([x(quartile_1), middle - 6.0], [wide, 12.0], colour, 0.85, &about);
        let at = x(median);
        canvas.line([at, middle - 8.0], [at, middle + 8.0], "stroke=\"currentColor\" stroke-width=\"2\"");
    }
    canvas.line([left, TOP - 4.0], [left, bottom], "stroke=\"currentColor\"");
    canvas.line([left, bottom], [right, bottom], "stroke=\"currentColor\"");
    canvas.text((left + right) / 2.0, bottom + 34.0, "middle", "", label);
    canvas.finish(WIDTH, bottom + 46.0, title)
}

/// The density of each class over all points in grey, in one panel per class with the same axes. `classes`, (points), are
/// indices into `names`; a class may have no points.
pub fn densities(title: &str, axes: [&str; 2], names: &[String], points: &[[f64; 2]], classes: &[u32]) -> String {
    const GAP: f64 = 14.0;
    const HEAD: f64 = 22.0;
    const SHARES: [f64; 5] = [0.95, 0.8, 0.6, 0.4, 0.2];
    // Equal scales on both axes, as only distances matter.
    let ends = [0, 1].map(|axis| {
        let values = points.iter().map(|point| point[axis]);
        values.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], x| [low.min(x), high.max(x)])
    });
    let extent = ends.iter().map(|[low, high]| high - low).fold(0.0, f64::max);
    let extent = if extent > 0.0 { extent / (1.0 - 2.0 * MARGIN) } else { 1.0 };
    let lows = ends.map(|[low, high]| (low + high - extent) / 2.0);
    let shown = lows.map(|low| Axis { label: String::new(), range: Some([low, low + extent]) });
    let [(_, x_ticks, x_format), (_, y_ticks, y_format)] = shown.each_ref().map(|axis| axis.scale([].into_iter(), false));
    let unit: Vec<[f64; 2]> = points.iter().map(|[x, y]| [(x - lows[0]) / extent, 1.0 - (y - lows[1]) / extent]).collect();

    let columns = if names.len() <= 3 { names.len() } else { (names.len() as f64).sqrt().ceil() as usize };
    let side = (760.0 / columns as f64 - GAP).clamp(110.0, 340.0).floor();
    let widest = |ticks: &[f64], format: &dyn Fn(f64) -> String| ticks.iter().map(|&x| width(&format(x))).fold(0.0, f64::max);
    let (wide, high) = (widest(&x_ticks, &x_format), widest(&y_ticks, &y_format));
    let note = "grey: all points; coloured: the densest 20, 40, 60, 80 and 95 % of the panel's own";
    let drawn = columns as f64 * (side + GAP) - GAP;
    let full = [34.0 + high + drawn + 16.0, width(title) * 1.3 + 20.0, width(note)].into_iter().fold(0.0, f64::max);
    let (left, top) = (34.0 + high + (full - 34.0 - high - drawn - 16.0) / 2.0, 34.0);
    let mut canvas = Canvas::default();
    canvas.define_dots("all", &unit, side);
    for (class, name) in names.iter().enumerate() {
        let (x, y) = (left + (class % columns) as f64 * (side + GAP), top + (class / columns) as f64 * (side + HEAD) + HEAD);
        let x_of = |value: f64| x + (value - lows[0]) / extent * side;
        let y_of = |value: f64| y + side - (value - lows[1]) / extent * side;
        canvas.rect([x, y], [side, side], "currentColor", 0.03, name);
        // In small panels some ticks are unlabelled.
        let spacing = |ticks: &[f64], room: f64| (room * ticks.len() as f64 / side).ceil().max(1.0) as usize;
        for (i, &tick) in x_ticks.iter().enumerate() {
            canvas.line([x_of(tick), y], [x_of(tick), y + side], "class=\"faint\"");
            if class + columns >= names.len() && i % spacing(&x_ticks, wide + 8.0) == 0 {
                canvas.text(x_of(tick), y + side + 16.0, "middle", "", &x_format(tick));
            }
        }
        for (i, &tick) in y_ticks.iter().enumerate() {
            canvas.line([x, y_of(tick)], [x + side, y_of(tick)], "class=\"faint\"");
            if class % columns == 0 && i % spacing(&y_ticks, 16.0) == 0 {
                canvas.text(x - 6.0, y_of(tick) + 4.0, "end", "", &y_format(tick));
            }
        }
        canvas.add(format_args!("<use href=\"#all\" x=\"{x:.1}\" y=\"{y:.1}\"/>"));
        let mine = || unit.iter().zip(classes).filter(|(_, of)| **of as usize == class).map(|(&point, _)| point);
        // Without the last colour, which is grey itself.
        let colour = COLOURS[class % (COLOURS.len() - 1)];
        let density = Density::of(mine());
        for share in SHARES {
            let placed = |[a, b]: [f64; 2]| [x + a * side, y + b * side];
            let outlines = density.outlines(share).into_iter().map(|outline| outline.into_iter().map(placed).collect());
            let about = format!("the densest {:.0} % of {name}", 100.0 * share);
            canvas.region(outlines.collect(), colour, &about);
        }
        let count = Count(mine().count() as u64).to_string();
        canvas.text(x, y - 6.0, "start", "name", &shortened(name, ((side - width(&count) - 8.0) / CHARACTER / 1.1) as usize));
        canvas.text(x + side, y - 6.0, "end", "", &count);
    }
    let bottom = top + names.len().div_ceil(columns) as f64 * (side + HEAD);
    canvas.text(full / 2.0, 20.0, "middle", "title", title);
    canvas.text(left + drawn / 2.0, bottom + 36.0, "middle", "", axes[0]);
    canvas.turned(left - high - 20.0, (top + HEAD + bottom) / 2.0, "middle", axes[1]);
    canvas.text(full / 2.0, bottom + 56.0, "middle", "small", note);
    canvas.finish(full, bottom + 68.0, title)
}

/// Escapes text for HTML and SVG. Control characters, which are invalid in XML, become replacement characters.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            '\n' | '\t' => escaped.push(character),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Approximate width of a line of text in pixels; East Asian characters count twice.
fn width(text: &str) -> f64 {
    text.chars().map(|c| if c >= '\u{2e80}' { 2.0 * CHARACTER } else { CHARACTER }).sum()
}

/// An entry of a legend.
struct Key<'a> {
    name: &'a str,
    colour: &'a str,
    sample: Sample,
}

/// How a series is drawn.
enum Sample {
    Bar,
    /// Dashes, and the look of the points if they are marked.
    Line {
        dashes: &'static str,
        marker: Option<usize>,
    },
}

fn stroke(colour: &str, wide: u32, dashes: &str) -> String {
    format!("stroke=\"{colour}\" stroke-width=\"{wide}\" stroke-dasharray=\"{dashes}\" stroke-linejoin=\"round\"")
}

/// The elements of a drawing.
#[derive(Default)]
struct Canvas(String);

impl Canvas {
    fn add(&mut self, element: std::fmt::Arguments) {
        self.0.write_fmt(element).expect("writing to memory succeeds");
        self.0.push('\n');
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        self.add(format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{class}>{}</text>", escape(text)));
    }

    /// Vertical text, reading upwards.
    fn turned(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escape(text);
        self.add(format_args!("<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\" text-anchor=\"{anchor}\">{text}</text>"));
    }

    fn line(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], look: &str) {
        self.add(format_args!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {look}/>"));
    }

    fn rect(&mut self, [x, y]: [f64; 2], [wide, high]: [f64; 2], colour: &str, opacity: f64, about: &str) {
        self.add(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{high:.1}\" fill=\"{colour}\" \
             fill-opacity=\"{opacity:.2}\"><title>{}</title></rect>",
            escape(about)
        ));
    }

    /// A point of a series: the shapes differ by the index of its look.
    fn marker(&mut self, [x, y]: [f64; 2], look: usize, colour: &str) {
        let corners: &[[f64; 2]] = match look % 5 {
            0 => return self.add(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>")),
            1 => &[[-3.0, -3.0], [3.0, -3.0], [3.0, 3.0], [-3.0, 3.0]],
            2 => &[[0.0, -4.5], [4.5, 0.0], [0.0, 4.5], [-4.5, 0.0]],
            3 => &[[0.0, -4.5], [4.0, 3.0], [-4.0, 3.0]],
            _ => &[[0.0, 4.5], [4.0, -3.0], [-4.0, -3.0]],
        };
        let corners: Vec<String> = corners.iter().map(|[dx, dy]| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        self.add(format_args!("<polygon points=\"{}\" fill=\"{colour}\"/>", corners.join(" ")));
    }

    /// A line through points, without those that differ invisibly from the one before.
    fn path(&mut self, points: &[[f64; 2]], look: &str) {
        let Some((&last, points)) = points.split_last() else { return };
        let mut path = String::new();
        let mut drawn = [f64::INFINITY; 2];
        for &[x, y] in points {
            if (x - drawn[0]).abs() + (y - drawn[1]).abs() >= 0.5 {
                write!(path, "{x:.1},{y:.1} ").expect("writing to memory succeeds");
                drawn = [x, y];
            }
        }
        self.add(format_args!("<polyline points=\"{path}{:.1},{:.1}\" fill=\"none\" {look}/>", last[0], last[1]));
    }

    /// Defines small grey dots at points of the unit square, drawn `side` wide wherever `id` is used.
    fn define_dots(&mut self, id: &str, points: &[[f64; 2]], side: f64) {
        let mut drawn: Vec<[i64; 2]> =
            points.iter().map(|[x, y]| [y, x].map(|value| (value * side * FINE).round() as i64)).collect();
        drawn.sort_unstable();
        drawn.dedup();
        let (mut path, mut from) = (String::new(), [0; 2]);
        for [y, x] in drawn {
            write!(path, "m{} {}h0", x - from[0], y - from[1]).expect("writing to memory succeeds");
            from = [x, y];
        }
        self.add(format_args!(
            "<defs><path id=\"{id}\" d=\"{path}\" transform=\"scale({})\" stroke=\"currentColor\" stroke-opacity=\"0.3\" \
             stroke-width=\"{}\" stroke-linecap=\"round\" fill=\"none\"/></defs>",
            1.0 / FINE,
            2.5 * FINE
        ));
    }

    /// The region inside closed outlines; an outline within another is a hole.
    fn region(&mut self, outlines: Vec<Vec<[f64; 2]>>, colour: &str, about: &str) {
        let mut path = String::new();
        for outline in &outlines {
            let mut from = [0; 2];
            for (i, point) in outline.iter().enumerate() {
                let to = point.map(|value| (value * FINE).round() as i64);
                let command = ["M", "l", " "][i.min(2)];
                write!(path, "{command}{} {}", to[0] - from[0], to[1] - from[1]).expect("writing to memory succeeds");
                from = to;
            }
            path.push('z');
        }
        if !path.is_empty() {
            let about = escape(about);
            self.add(format_args!(
                "<path d=\"{path}\" transform=\"scale({})\" fill=\"{colour}\" fill-opacity=\"0.25\" \
                 fill-rule=\"evenodd\"><title>{about}</title></path>",
                1.0 / FINE
            ));
        }
    }

    /// Names beside samples of their looks from `y` down, in as many lines as needed; returns where the legend ends.
    fn legend(&mut self, entries: &[Key], left: f64, right: f64, mut y: f64) -> f64 {
        const SAMPLE: f64 = 24.0;
        if entries.len() < 2 {
            return y - 10.0;
        }
        let mut x = left;
        for Key { name, colour, sample } in entries {
            let name = shortened(name, ((right - left - SAMPLE - 6.0) / CHARACTER) as usize);
            if x > left && x + SAMPLE + 6.0 + width(&name) > right {
                (x, y) = (left, y + 17.0);
            }
            match *sample {
                Sample::Bar => self.rect([x + SAMPLE - 12.0, y - 9.0], [12.0, 9.0], colour, 1.0, &name),
                Sample::Line { dashes, marker } => {
                    self.line([x, y - 4.0], [x + SAMPLE, y - 4.0], &stroke(colour, 2, dashes));
                    marker.into_iter().for_each(|look| self.marker([x + SAMPLE / 2.0, y - 4.0], look, colour));
                }
            }
            self.text(x + SAMPLE + 5.0, y, "start", "", &name);
            x += SAMPLE + 20.0 + width(&name);
        }
        y + 12.0
    }

    fn finish(self, width: f64, height: f64, title: &str) -> String {
        let title = escape(title);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" viewBox=\"0 0 {width:.0} {height:.0}\" \
             width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"{title}\">\n<style>{STYLE}</style>\n{}</svg>\n",
            self.0
        )
    }
}
