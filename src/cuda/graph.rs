//! Graphs (CUDA Programming Guide, "CUDA Graphs"): the forward pass of one text is so short that the host needs longer to launch its
//! kernels than the GPU to run them. A pass is recorded when its length comes for the second time; from then on one call launches
//! all of it.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::sys::CUgraphInstantiate_flags;
use cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use cudarc::driver::{CudaGraph, CudaStream};

use super::error::failed;
use crate::console::note;
use crate::error::{Error, Kind, Result};

/// The tokens of the text and the number of ops. All else that the launches depend on follows from these, for the arrays of one text
/// have the same place in every batch.
type Pass = (usize, usize);

/// The passes that were launched, and the graphs of those that were recorded.
pub struct Graphs {
    passes: HashMap<Pass, Option<CudaGraph>>,
    /// False if recording has failed.
    on: bool,
}

// SAFETY: a graph may be launched by any thread, one at a time.
unsafe impl Send for Graphs {}

impl Graphs {
    pub fn new(on: bool) -> Graphs {
        Graphs { passes: HashMap::new(), on }
    }

    /// Forgets what was recorded: its kernels read and write the memory of that time.
    pub fn clear(&mut self) {
        self.passes.clear();
    }

    /// Runs a pass whose kernels `launch` launches.
    pub fn run(&mut self, stream: &Arc<CudaStream>, pass: Pass, launch: impl Fn() -> Result<()>) -> Result<()> {
        match self.passes.get(&pass) {
            Some(Some(graph)) => graph.launch().map_err(failed("graph")),
            Some(None) if self.on => match record(stream, &launch) {
                Ok(graph) => {
                    graph.launch().map_err(failed("graph"))?;
                    self.passes.insert(pass, Some(graph));
                    Ok(())
                }
                Err(error) => {
                    self.on = false;
                    note(format!(
                        "note: every kernel is launched by itself, as recording them fails ({})",
                        error.without_remedy()
                    ));
                    launch()
                }
            },
            // cuBLASLt loads kernels at their first launch, which a recording does not allow.
            _ => {
                self.passes.insert(pass, None);
                launch()
            }
        }
    }
}

/// The graph of what `launch` submits to the stream; nothing of it runs.
fn record(stream: &Arc<CudaStream>, launch: impl Fn() -> Result<()>) -> Result<CudaGraph> {
    stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(failed("graph"))?;
    let launched = launch();
    // The stream leaves the recording in any case.
    let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    launched?;
    graph.map_err(failed("graph"))?.ok_or_else(|| Error::new(Kind::Device, "graph", "the recording is empty", ""))
}
