// Streams are lazy: submitted work stays in its stream's queue until something waits for it, so that a result used too early is
// not there yet. Seed 0 runs everything as late as the waits allow; other seeds run some of it early and let streams overtake
// each other at random. The waiting thread runs the work, so streams of different threads run concurrently.
#include "streams.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <thread>

namespace vgpu {

struct Operation {
    Work work;
    std::shared_ptr<Operation> after;  // runs before it, in another stream
    Stream* stream;                    // valid until done
    bool done = false;
};

struct Stream {
    Device& device;
    std::thread::id owner;  // none for the null stream
    std::deque<std::shared_ptr<Operation>> queue;
    bool busy = false;  // its first operation is running
    std::shared_ptr<Graph> capture;
};

namespace {

using Lock = std::unique_lock<std::mutex>;

std::mutex mutex;  // guards everything here; unlocked while an operation runs
std::condition_variable changed;
Handles<Stream> handles;
std::vector<Stream*> streams;
Handles<Event> events;

bool may_run(const Stream& stream) {
    return !stream.queue.empty() && !stream.busy && !(stream.queue.front()->after && !stream.queue.front()->after->done);
}

void finish(Operation& operation) {
    if (operation.work.host) operation.work.host->pending--;
    operation.done = true;
    operation.work = {};
}

void run_first(Lock& lock, Stream& stream) {
    auto operation = stream.queue.front();
    stream.busy = true;
    lock.unlock();
    if (operation->work.run && !stream.device.error) operation->work.run(stream.device);
    lock.lock();
    stream.queue.pop_front();
    stream.busy = false;
    finish(*operation);
    changed.notify_all();
}

// At random, runs operations of this thread's streams that nothing waits for yet.
void run_some(Lock& lock, Device& device) {
    while (coin()) {
        std::vector<Stream*> ready;
        for (Stream* stream : streams)
            if (&stream->device == &device && stream->owner == std::this_thread::get_id() && may_run(*stream)) ready.push_back(stream);
        if (ready.empty()) return;
        run_first(lock, *ready[random_below(ready.size())]);
    }
}

void run_until_done(Lock& lock, std::shared_ptr<Operation> operation) {
    while (!operation->done) {
        Stream& stream = *operation->stream;
        run_some(lock, stream.device);
        if (operation->done) return;
        if (may_run(stream)) run_first(lock, stream);
        else if (stream.busy) changed.wait(lock);
        else run_until_done(lock, stream.queue.front()->after);
    }
}

void drain(Lock& lock, Stream& stream) {
    if (!stream.queue.empty()) run_until_done(lock, stream.queue.back());
}

std::shared_ptr<Operation> enqueue(Stream& stream, Work work, std::shared_ptr<Operation> after = nullptr) {
    if (work.host && work.host->pending++ == 0 && work.arrives) memset(work.arrives, 0xff, work.bytes);
    auto operation = std::make_shared<Operation>(Operation{std::move(work), std::move(after), &stream});
    stream.queue.push_back(operation);
    return operation;
}

// The legacy default stream of the device; cudarc's streams do not wait for it, nor it for them.
std::shared_ptr<Stream> null_stream(Device& device) {
    static std::map<Device*, std::shared_ptr<Stream>> null_streams;
    auto& stream = null_streams[&device];
    if (!stream) {
        stream = std::make_shared<Stream>(Stream{device, std::thread::id()});
        streams.push_back(stream.get());
    }
    return stream;
}

std::shared_ptr<Stream> find_stream(void* handle) {
    return reinterpret_cast<uintptr_t>(handle) <= 1 ? null_stream(*current_device()) : handles.find(handle);
}

int invalidate(Stream& stream) {
    stream.capture->invalid = true;
    return refuse(STREAM_CAPTURE_UNSUPPORTED, "a call that waits, in a stream that is being captured");
}

}  // namespace

void* create_stream() {
    auto stream = std::make_shared<Stream>(Stream{*current_device(), std::this_thread::get_id()});
    Lock lock(mutex);
    streams.push_back(stream.get());
    return handles.add(stream);
}

int destroy_stream(void* handle) {
    Lock lock(mutex);
    auto stream = handles.remove(handle);
    if (!stream) return INVALID_HANDLE;
    drain(lock, *stream);
    std::erase(streams, stream.get());
    return SUCCESS;
}

int submit(void* handle, Work work) {
    Lock lock(mutex);
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (checks_only()) return SUCCESS;
    if (stream->device.is_struck()) {
        if (!stream->device.fails_late) return LAUNCH_FAILED;
        work.run = [](Device& device) { device.error = ILLEGAL_ADDRESS; };
    }
    if (stream->capture) {
        stream->capture->work.push_back(std::move(work));
        return SUCCESS;
    }
    enqueue(*stream, std::move(work));
    run_some(lock, stream->device);
    return SUCCESS;
}

int synchronize_stream(void* handle) {
    Lock lock(mutex);
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) return invalidate(*stream);
    drain(lock, *stream);
    return stream->device.error;
}

int synchronize_device(Device& device) {
    Lock lock(mutex);
    // Another thread may end one of these streams while the lock is released, so search from the start each time.
    for (size_t i = 0; i < streams.size(); i++) {
        if (&streams[i]->device != &device || streams[i]->queue.empty()) continue;
        drain(lock, *streams[i]);
        i = -1;
    }
    return device.error;
}

void reset_streams(Device& device) {
    Lock lock(mutex);
    auto busy = [&](Stream* stream) { return &stream->device == &device && stream->busy; };
    changed.wait(lock, [&] { return std::none_of(streams.begin(), streams.end(), busy); });
    for (Stream* stream : streams) {
        if (&stream->device != &device) continue;
        for (auto& operation : stream->queue) finish(*operation);
        stream->queue.clear();
        stream->capture = nullptr;
    }
    changed.notify_all();
}

int refuse_in_capture(const char* call) {
    Lock lock(mutex);
    for (Stream* stream : streams) {
        Graph* graph = stream->capture.get();
        if (!graph || &stream->device != current_device()) continue;
        bool mine = graph->thread == std::this_thread::get_id();
        if (graph->mode == CaptureMode::GLOBAL || (graph->mode == CaptureMode::THREAD_LOCAL && mine)) {
            graph->invalid = true;
            return refuse(STREAM_CAPTURE_UNSUPPORTED, format("%s while a stream is being captured", call));
        }
    }
    return SUCCESS;
}

bool captured(void* handle) {
    Lock lock(mutex);
    auto stream = find_stream(handle);
    return stream && stream->capture;
}

// ---- events

void* create_event(bool timed) {
    auto event = std::make_shared<Event>();
    event->timed = timed;
    return events.add(event);
}

int destroy_event(void* handle) { return events.remove(handle) ? SUCCESS : INVALID_HANDLE; }

int record_event(void* handle, void* stream_handle) {
    Lock lock(mutex);
    auto event = events.find(handle);
    auto stream = find_stream(stream_handle);
    if (!event || !stream) return INVALID_HANDLE;
    event->capture = stream->capture;
    auto record = [event](Device& device) { event->time = device.clock; };
    event->operation = stream->capture ? nullptr : enqueue(*stream, {event->timed ? record : std::function<void(Device&)>()});
    return SUCCESS;
}

int wait_event(void* stream_handle, void* handle) {
    Lock lock(mutex);
    auto event = events.find(handle);
    auto stream = find_stream(stream_handle);
    if (!event || !stream) return INVALID_HANDLE;
    // Within one capture only the stream's order matters.
    if (stream->capture && event->capture == stream->capture) return SUCCESS;
    if (stream->capture && event->operation) {
        stream->capture->invalid = true;
        return refuse(STREAM_CAPTURE_ISOLATION, "a captured stream waits for an event recorded before its capture");
    }
    if (event->capture) return refuse(NOT_SUPPORTED, "a capture that spreads to another stream");
    if (event->operation && !event->operation->done) enqueue(*stream, {}, event->operation);
    run_some(lock, stream->device);
    return SUCCESS;
}

int synchronize_event(void* handle) {
    Lock lock(mutex);
    auto event = events.find(handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture) return CAPTURED_EVENT;
    if (event->operation) run_until_done(lock, event->operation);
    return SUCCESS;
}

int query_event(void* handle) {
    Lock lock(mutex);
    auto event = events.find(handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture) return CAPTURED_EVENT;
    if (!event->operation || event->operation->done) return SUCCESS;
    // Polling must terminate: each query runs one operation.
    auto wanted = event->operation;
    while (!may_run(*wanted->stream) && !wanted->stream->busy) wanted = wanted->stream->queue.front()->after;
    if (may_run(*wanted->stream)) run_first(lock, *wanted->stream);
    return NOT_READY;
}

int elapsed_time(float* milliseconds, void* begin_handle, void* end_handle) {
    Lock lock(mutex);
    auto begin = events.find(begin_handle), end = events.find(end_handle);
    if (!begin || !end || !begin->timed || !end->timed || !begin->operation || !end->operation) return INVALID_HANDLE;
    if (!begin->operation->done || !end->operation->done) return NOT_READY;
    *milliseconds = (end->time - begin->time) / 1e6f;
    return SUCCESS;
}

// ---- graphs

int begin_capture(void* handle, CaptureMode mode) {
    Lock lock(mutex);
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (reinterpret_cast<uintptr_t>(handle) <= 1) return refuse(STREAM_CAPTURE_UNSUPPORTED, "the null stream cannot be captured");
    if (stream->capture) return ILLEGAL_STATE;
    stream->capture = std::make_shared<Graph>();
    stream->capture->thread = std::this_thread::get_id();
    stream->capture->mode = mode;
    return SUCCESS;
}

int end_capture(void* handle, std::shared_ptr<Graph>* graph) {
    Lock lock(mutex);
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (!stream->capture) return ILLEGAL_STATE;
    *graph = std::move(stream->capture);
    stream->capture = nullptr;
    return (*graph)->invalid ? STREAM_CAPTURE_INVALIDATED : SUCCESS;
}

int launch_graph(Graph& graph, void* handle) {
    Lock lock(mutex);
    auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) {
        auto& work = stream->capture->work;
        work.insert(work.end(), graph.work.begin(), graph.work.end());
        return SUCCESS;
    }
    // Launches of one graph run one after the other, in any streams.
    if (graph.last && !graph.last->done) enqueue(*stream, {}, graph.last);
    for (const Work& work : graph.work) graph.last = enqueue(*stream, work);
    run_some(lock, stream->device);
    return SUCCESS;
}

}  // namespace vgpu
