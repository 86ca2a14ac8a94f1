// Streams, events and graphs, for the entry points in driver.cpp.
#pragma once
#include "runtime.h"

#include <thread>

namespace vgpu {

struct Stream;
struct Operation;

enum class CaptureMode : int { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };

struct Graph {
    std::vector<Work> work;
    std::shared_ptr<Operation> last;  // of the last launch
    bool invalid = false;
    std::thread::id thread;  // the capturing thread
    CaptureMode mode;
};

struct Event {
    std::shared_ptr<Operation> operation;  // its latest record, or null
    std::shared_ptr<Graph> capture;        // in which it was recorded
    bool timed = false;
    uint64_t time = 0;  // on the device's clock when the record ran
};

void* create_stream();
int destroy_stream(void* stream);
int synchronize_stream(void* stream);
int synchronize_device(Device& device);
void reset_streams(Device& device);  // drops queued operations

void* create_event(bool timed);
int destroy_event(void* event);
int record_event(void* event, void* stream);
int wait_event(void* stream, void* event);
int synchronize_event(void* event);
int query_event(void* event);
int elapsed_time(float* milliseconds, void* begin, void* end);

// The error of a call that is not allowed during a capture; ends that capture.
int refuse_in_capture(const char* call);
bool captured(void* stream);
int begin_capture(void* stream, CaptureMode mode);
int end_capture(void* stream, std::shared_ptr<Graph>* graph);
int launch_graph(Graph& graph, void* stream);

}  // namespace vgpu
