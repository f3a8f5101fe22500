// CUDA's runtime, driver, compiler and cuBLAS on a CPU, as far as CuPy asks for them: what the parts share.
//
// All work is done as late as CUDA allows: it runs when something waits for it, and then only what that depends on.
// The memory of a device cannot be touched by the host in between.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))
#define LOCK std::lock_guard<std::recursive_mutex> lock(mutex)

// What is counted, and what can be set while the process runs; tests/cuda/emulated/__init__.py has the same order.
enum Count { LAUNCHES, GRAPHS, COPIES, PRODUCTS, ALLOCATIONS, CAPTURES, CAPTURED, COMPILATIONS, WAITS, COUNTS };
enum Setting { DEVICES, MEMORY, PAGES, ORDER, FAILING_ALLOCATION, FAILING_CAPTURE, SETTINGS };
extern "C" long emulated_counts[COUNTS], emulated_settings[SETTINGS];

extern std::recursive_mutex mutex;  // held by whoever is in here
extern thread_local int current;    // device

// An error of the program that runs here, which a GPU would not survive. From then on every call has this result.
int fail(int error, const char* format, ...) __attribute__((format(printf, 2, 3)));
int broken();

// ------------------------------------------------------------------------------------------------------------ memory

enum class Where { NOWHERE, DEVICE, MANAGED, PINNED };
struct Place {
  Where where = Where::NOWHERE;
  int device = -1;
};
Place find(const void* p, size_t bytes);
bool on_device(const void* p, size_t bytes, int device);  // its own memory, or managed memory
int check_guards(const char* what);

class Entered {  // while one of these lives, the memory of the devices can be touched
 public:
  Entered();
  ~Entered();
};

// Call the function; an access to memory that nobody has ends it, and becomes a CUDA error that names it.
int guarded(const char* name, const std::function<int()>& function);

// ----------------------------------------------------------------------------------------------------------- streams

struct Work {
  long number;
  std::function<int()> run;
  std::vector<std::shared_ptr<Work>> after;
  bool done = false;
};
struct Capture {
  std::vector<std::function<int()>> nodes;
  cudaStreamCaptureMode mode;
  bool invalid = false;
  bool urgent = false;  // other processes wait for what is in it
};
struct Stream {
  int device;
  bool blocking;  // with the device's default stream
  unsigned flags = 0;
  std::shared_ptr<Work> last = {};
  std::shared_ptr<Capture> capture = {};
  bool origin = false;   // of the capture
  long captured = 0, joined = 0;  // operations captured, and how many of them another stream waits for
};

Stream* stream_of(cudaStream_t handle);  // null if there is none
int ask(Stream* stream, std::function<int()> run);  // for work, or for its place in a graph
int ask_urgently(Stream* stream, std::function<int()> run);  // likewise, but other processes wait for it
int refuse(Stream* stream, int error);              // and invalidate the stream's capture
int finish_all();
