// Streams, events, copies and graphs. What a stream is asked for waits in a graph of work until somebody waits for it.
#include <time.h>

#include <cstring>
#include <map>
#include <set>

#include "emulator.h"

#define RUNTIME API cudaError_t
#define RETURN(x) return static_cast<cudaError_t>(x)

struct Event {
  int device;
  unsigned flags;
  std::shared_ptr<Work> work = {};
  double time = 0;  // ms
  std::shared_ptr<Capture> capture = {};
  Stream* stream = nullptr;  // that it was captured in
  long captured = 0;         // operations of that stream before it
};
static std::map<int, Stream> default_streams;
static std::set<Stream*> streams;
static std::set<Event*> events;
static long next_number;

static Stream* default_stream(int device) {
  return &default_streams.try_emplace(device, Stream{device, true}).first->second;
}
Stream* stream_of(cudaStream_t handle) {
  if (!handle || handle == cudaStreamLegacy || handle == cudaStreamPerThread) return default_stream(current);
  auto* stream = reinterpret_cast<Stream*>(handle);
  return streams.count(stream) ? stream : nullptr;
}
static Event* event_of(cudaEvent_t handle) {
  auto* event = reinterpret_cast<Event*>(handle);
  return events.count(event) ? event : nullptr;
}
static bool is_default(const Stream* stream) { return stream == default_stream(stream->device); }

// Run a piece of work and what it depends on, in the order in which it was asked for; nothing else.
static int finish(const std::shared_ptr<Work>& last) {
  std::map<long, std::shared_ptr<Work>> needed;
  std::vector<std::shared_ptr<Work>> open{last};
  while (!open.empty()) {
    auto work = open.back();
    open.pop_back();
    if (!work || work->done || !needed.emplace(work->number, work).second) continue;
    open.insert(open.end(), work->after.begin(), work->after.end());
  }
  if (needed.empty()) return broken();
  Entered enter;
  for (auto& [number, work] : needed) {
    if (!broken() && work->run)
      if (int error = work->run(); error && !broken()) fail(error, "work failed with CUDA error %d", error);
    work->done = true;
    work->run = nullptr;
    work->after.clear();
  }
  check_guards("what ran last");
  return broken();
}
int finish_all() {
  for (auto* stream : streams) finish(stream->last);
  for (auto& [device, stream] : default_streams) finish(stream.last);
  return broken();
}

static std::shared_ptr<Work> push(Stream* stream, std::function<int()> run, std::vector<std::shared_ptr<Work>> after = {}) {
  after.push_back(stream->last);
  if (is_default(stream)) {
    for (auto* other : streams)
      if (other->blocking && other->device == stream->device) after.push_back(other->last);
  } else if (stream->blocking) {
    after.push_back(default_stream(stream->device)->last);
  }
  return stream->last = std::make_shared<Work>(Work{++next_number, std::move(run), std::move(after)});
}
int refuse(Stream* stream, int error) {
  stream->capture->invalid = true;
  return error;
}
// Work that would have to wait for a stream that is captured: the default stream's, if that is a blocking one.
static int implicit_wait(const Stream* stream) {
  if (is_default(stream))
    for (auto* other : streams)
      if (other->capture && other->blocking && other->device == stream->device)
        return refuse(other, cudaErrorStreamCaptureImplicit);
  return 0;
}
int ask(Stream* stream, std::function<int()> run) {
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (broken()) return broken();
  if (int error = implicit_wait(stream)) return error;
  if (!stream->capture) {
    push(stream, std::move(run));
    return 0;
  }
  if (stream->capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (emulated_settings[FAILING_CAPTURE] && !--emulated_settings[FAILING_CAPTURE])
    return refuse(stream, cudaErrorStreamCaptureUnsupported);
  emulated_counts[CAPTURED]++;
  stream->captured++;
  stream->capture->nodes.push_back(std::move(run));
  return 0;
}
int ask_urgently(Stream* stream, std::function<int()> run) {
  if (int error = ask(stream, std::move(run))) return error;
  if (!stream->capture) return finish(stream->last);
  stream->capture->urgent = true;
  return 0;
}

// -------------------------------------------------------------------------------------------------------------- copies

// Pageable memory of the host is read before the call returns, and written before it returns. Pinned memory is read or
// written when the copy's turn comes, unless the call is one that waits.
static int copy(void* to, const void* from, size_t n, cudaMemcpyKind kind, Stream* stream, bool waits) {
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (!n) return 0;
  const Place source = find(from, n), target = find(to, n);
  auto is_memory = [](Place place) { return place.where == Where::DEVICE || place.where == Where::MANAGED; };
  const bool to_device = kind == cudaMemcpyDefault ? is_memory(target) : kind & 1;
  const bool from_device = kind == cudaMemcpyDefault ? is_memory(source) : kind & 2;
  if (to_device && !is_memory(target)) return fail(cudaErrorInvalidValue, "a copy of %zu bytes goes nowhere", n);
  if (from_device && !is_memory(source)) return fail(cudaErrorInvalidValue, "a copy of %zu bytes comes from nowhere", n);
  emulated_counts[COPIES]++;
  const bool early = !from_device && (waits || source.where != Where::PINNED);
  waits = from_device && !to_device && (waits || target.where != Where::PINNED);
  if (stream->capture && (early || waits)) return refuse(stream, cudaErrorStreamCaptureUnsupported);
  std::function<int()> run = [=] { memmove(to, from, n); return 0; };
  if (early) {
    auto bytes = std::make_shared<std::string>(static_cast<const char*>(from), n);
    run = [=] { memcpy(to, bytes->data(), n); return 0; };
  }
  if (int error = ask(stream, run)) return error;
  return waits ? finish(stream->last) : 0;
}
RUNTIME cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind kind, cudaStream_t stream) {
  LOCK;
  RETURN(copy(to, from, n, kind, stream_of(stream), false));
}
RUNTIME cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind kind) {
  LOCK;
  RETURN(copy(to, from, n, kind, default_stream(current), true));
}
RUNTIME cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t n, cudaStream_t stream) {
  LOCK;
  RETURN(copy(to, from, n, cudaMemcpyDeviceToDevice, stream_of(stream), false));
}
RUNTIME cudaMemcpyPeer(void* to, int, const void* from, int, size_t n) {
  LOCK;
  finish_all();
  RETURN(copy(to, from, n, cudaMemcpyDeviceToDevice, default_stream(current), true));
}
static int fill(void* p, int value, size_t n, Stream* stream) {
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (n && !on_device(p, n, stream->device)) return fail(cudaErrorInvalidValue, "memset of %zu bytes of nobody's", n);
  return ask(stream, [=] { memset(p, value, n); return 0; });
}
RUNTIME cudaMemsetAsync(void* p, int value, size_t n, cudaStream_t stream) {
  LOCK;
  RETURN(fill(p, value, n, stream_of(stream)));
}
RUNTIME cudaMemset(void* p, int value, size_t n) { LOCK; RETURN(fill(p, value, n, default_stream(current))); }

// ------------------------------------------------------------------------------------------------------------- streams

RUNTIME cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned flags, int) {
  LOCK;
  auto* stream = new Stream{current, !(flags & cudaStreamNonBlocking), flags};
  streams.insert(stream);
  *handle = reinterpret_cast<cudaStream_t>(stream);
  return cudaSuccess;
}
RUNTIME cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
  return cudaStreamCreateWithPriority(handle, flags, 0);
}
RUNTIME cudaStreamCreate(cudaStream_t* handle) { return cudaStreamCreateWithPriority(handle, 0, 0); }
RUNTIME cudaStreamDestroy(cudaStream_t handle) {
  LOCK;
  Stream* stream = stream_of(handle);
  if (!stream || is_default(stream)) return cudaErrorInvalidResourceHandle;
  finish(stream->last);  // CUDA does it some time; nobody could wait for it any more
  streams.erase(stream);
  delete stream;
  return cudaSuccess;
}
RUNTIME cudaStreamSynchronize(cudaStream_t handle) {
  LOCK;
  emulated_counts[WAITS]++;
  Stream* stream = stream_of(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (stream->capture) RETURN(refuse(stream, cudaErrorStreamCaptureUnsupported));
  if (int error = implicit_wait(stream)) RETURN(error);
  if (is_default(stream)) push(stream, nullptr);  // after the work of all blocking streams
  RETURN(finish(stream->last));
}
RUNTIME cudaDeviceSynchronize() {
  LOCK;
  emulated_counts[WAITS]++;
  for (auto* stream : streams)
    if (stream->capture) RETURN(refuse(stream, cudaErrorStreamCaptureUnsupported));
  RETURN(finish_all());
}
RUNTIME cudaStreamQuery(cudaStream_t handle) {  // the first answer is "not yet"
  LOCK;
  Stream* stream = stream_of(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (stream->capture) RETURN(refuse(stream, cudaErrorStreamCaptureUnsupported));
  if (!stream->last || stream->last->done) RETURN(broken());
  finish(stream->last);
  return cudaErrorNotReady;
}
RUNTIME cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
  LOCK;
  Stream* stream = stream_of(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  *flags = stream->flags;
  return cudaSuccess;
}
RUNTIME cudaStreamGetPriority(cudaStream_t, int* priority) { *priority = 0; return cudaSuccess; }
RUNTIME cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  LOCK;
  RETURN(ask(stream_of(stream), [=] { function(data); return 0; }));
}

// ------------------------------------------------------------------------------------------------------------ captures

RUNTIME cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  LOCK;
  Stream* stream = stream_of(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (is_default(stream)) return cudaErrorStreamCaptureUnsupported;
  if (stream->capture) return cudaErrorIllegalState;
  stream->capture = std::make_shared<Capture>(Capture{{}, mode});
  stream->origin = true;
  return cudaSuccess;
}
RUNTIME cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  LOCK;
  Stream* stream = stream_of(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (int error = implicit_wait(stream)) RETURN(error);
  *status = !stream->capture           ? cudaStreamCaptureStatusNone
            : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
RUNTIME cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  LOCK;
  Stream* stream = stream_of(handle);
  *graph = nullptr;
  if (!stream) return cudaErrorInvalidResourceHandle;
  auto capture = stream->capture;
  if (!capture) return cudaErrorIllegalState;
  if (!stream->origin) RETURN(refuse(stream, cudaErrorStreamCaptureUnmatched));
  bool unjoined = false;
  for (auto* other : streams)
    if (other->capture == capture) {
      unjoined |= !other->origin && other->joined < other->captured;
      other->capture = nullptr;
      other->origin = false;
      other->captured = other->joined = 0;
    }
  for (auto* event : events)
    if (event->capture == capture) event->capture = nullptr;
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (unjoined) return cudaErrorStreamCaptureUnjoined;
  emulated_counts[CAPTURES]++;
  *graph = reinterpret_cast<cudaGraph_t>(new std::shared_ptr<Capture>(capture));
  return cudaSuccess;
}
static auto& held(void* handle) { return *static_cast<std::shared_ptr<Capture>*>(handle); }
RUNTIME cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new std::shared_ptr<Capture>(held(graph)));
  return cudaSuccess;
}
RUNTIME cudaGraphDestroy(cudaGraph_t graph) { delete &held(graph); return cudaSuccess; }
RUNTIME cudaGraphExecDestroy(cudaGraphExec_t graph) { delete &held(graph); return cudaSuccess; }
RUNTIME cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
RUNTIME cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  LOCK;
  emulated_counts[GRAPHS]++;
  RETURN((held(graph)->urgent ? ask_urgently : ask)(stream_of(stream), [capture = held(graph)] {
    for (auto& node : capture->nodes)
      if (int error = node()) return error;
    return 0;
  }));
}

// -------------------------------------------------------------------------------------------------------------- events

RUNTIME cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned flags) {
  LOCK;
  auto* event = new Event{current, flags};
  events.insert(event);
  *handle = reinterpret_cast<cudaEvent_t>(event);
  return cudaSuccess;
}
RUNTIME cudaEventCreate(cudaEvent_t* handle) { return cudaEventCreateWithFlags(handle, 0); }
RUNTIME cudaEventDestroy(cudaEvent_t handle) {
  LOCK;
  Event* event = event_of(handle);
  if (!event) return cudaErrorInvalidResourceHandle;
  events.erase(event);
  delete event;
  return cudaSuccess;
}
static double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}
RUNTIME cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
  LOCK;
  Event* event = event_of(handle);
  Stream* stream = stream_of(stream_handle);
  if (!stream || !event || event->device != stream->device) return cudaErrorInvalidResourceHandle;
  event->capture = stream->capture;
  event->work = nullptr;
  if (stream->capture) {
    event->stream = stream;
    event->captured = stream->captured;
    return cudaSuccess;
  }
  event->work = push(stream, nullptr);
  event->work->run = [event, work = std::weak_ptr<Work>(event->work)] {
    if (events.count(event) && event->work == work.lock()) event->time = now();
    return 0;
  };
  return cudaSuccess;
}
RUNTIME cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t handle, unsigned) {
  LOCK;
  Event* event = event_of(handle);
  Stream* stream = stream_of(stream_handle);
  if (!stream || !event) return cudaErrorInvalidResourceHandle;
  if (event->capture) {  // the stream joins the capture
    if (stream->capture && stream->capture != event->capture) RETURN(refuse(stream, cudaErrorStreamCaptureIsolation));
    stream->capture = event->capture;
    if (event->stream != stream) event->stream->joined = std::max(event->stream->joined, event->captured);
    return cudaSuccess;
  }
  if (stream->capture) RETURN(event->work ? refuse(stream, cudaErrorStreamCaptureIsolation) : 0);
  if (event->work) push(stream, nullptr, {event->work});
  return cudaSuccess;
}
RUNTIME cudaEventSynchronize(cudaEvent_t handle) {
  LOCK;
  emulated_counts[WAITS]++;
  Event* event = event_of(handle);
  if (!event) return cudaErrorInvalidResourceHandle;
  if (event->capture) {
    event->capture->invalid = true;
    return cudaErrorCapturedEvent;
  }
  RETURN(finish(event->work));
}
RUNTIME cudaEventQuery(cudaEvent_t handle) {
  LOCK;
  Event* event = event_of(handle);
  if (!event) return cudaErrorInvalidResourceHandle;
  if (event->capture) return cudaErrorCapturedEvent;
  if (!event->work || event->work->done) RETURN(broken());
  finish(event->work);
  return cudaErrorNotReady;
}
RUNTIME cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
  LOCK;
  Event *first = event_of(begin), *second = event_of(end);
  if (!first || !second || !first->work || !second->work) return cudaErrorInvalidResourceHandle;
  if ((first->flags | second->flags) & cudaEventDisableTiming) return cudaErrorInvalidResourceHandle;
  if (!first->work->done || !second->work->done) return cudaErrorNotReady;
  *ms = second->time - first->time;
  return cudaSuccess;
}
