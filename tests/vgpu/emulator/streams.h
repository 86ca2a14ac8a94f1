// Streams, events and graphs, as driver.cpp offers them.
#pragma once
#include "runtime.h"

#include <chrono>
#include <thread>

namespace vgpu {

using Clock = std::chrono::steady_clock;
struct Stream;
struct Operation;

enum class CaptureMode : int { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };

struct Graph {
    std::vector<Work> work;
    std::shared_ptr<Operation> last;  // of the last launch
    bool invalid = false;
    std::thread::id thread;  // that captures
    CaptureMode mode;
};

struct Event {
    bool timed;
    std::shared_ptr<Operation> operation;  // its latest record, or null
    std::shared_ptr<Graph> capture;        // that recorded it
};

void* create_stream();
int destroy_stream(void* stream);
int synchronize_stream(void* stream);
int synchronize_device(Device& device);
void reset_streams(Device& device);  // drops what is queued

void* create_event(bool timed);
int destroy_event(void* event);
int record_event(void* event, void* stream);
int wait_event(void* stream, void* event);
int synchronize_event(void* event);
int query_event(void* event);
int elapsed(void* from, void* to, float* milliseconds);

// The error of a call that a capture in progress does not allow, and the end of that capture.
int refuse_in_capture(const char* call);
bool captured(void* stream);
int begin_capture(void* stream, CaptureMode mode);
int end_capture(void* stream, std::shared_ptr<Graph>* graph);
int launch_graph(Graph& graph, void* stream);

}  // namespace vgpu
