// Counters, settings, and errors.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulator.h"

long emulated_counts[COUNTS];
long emulated_settings[SETTINGS] = {2, 8L << 30};
std::recursive_mutex mutex;
thread_local int current;

static int sticky;
static std::string messages;

int broken() { return sticky; }

int fail(int error, const char* format, ...) {
  char text[1024];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  fprintf(stderr, "emulated CUDA: %s\n", text);
  messages += std::string(text) + "\n";
  return sticky = error;
}

// Return the messages of all errors since the last call, and begin anew.
API size_t emulated_errors(char* to, size_t room) {
  LOCK;
  finish_all();
  const size_t bytes = std::min(room - 1, messages.size());
  memcpy(to, messages.data(), bytes);
  to[bytes] = 0;
  messages.clear();
  sticky = 0;
  return bytes;
}

// What CuPy or nvmath-python calls and nobody has emulated.
API int emulated_missing(const char* name) {
  fprintf(stderr, "emulated CUDA: %s is missing\n", name);
  return cudaErrorNotSupported;
}

// ------------------------------------------------------------------------------------------------ devices and errors

#define RUNTIME API cudaError_t
#define RETURN(x) return static_cast<cudaError_t>(x)

static bool exists(int device) { return device >= 0 && device < emulated_settings[DEVICES]; }

RUNTIME cudaGetDeviceCount(int* count) { *count = emulated_settings[DEVICES]; return cudaSuccess; }
RUNTIME cudaGetDevice(int* device) { *device = current; return cudaSuccess; }
RUNTIME cudaSetDevice(int device) {
  if (!exists(device)) return cudaErrorInvalidDevice;
  current = device;
  return cudaSuccess;
}
RUNTIME cudaDriverGetVersion(int* version) { *version = CUDART_VERSION; return cudaSuccess; }
RUNTIME cudaRuntimeGetVersion(int* version) { *version = CUDART_VERSION; return cudaSuccess; }
RUNTIME cudaDeviceCanAccessPeer(int* can, int, int) { *can = 0; return cudaSuccess; }
RUNTIME cudaDeviceGetLimit(size_t* value, cudaLimit) { *value = 1024; return cudaSuccess; }
RUNTIME cudaGetLastError() { return cudaSuccess; }
RUNTIME cudaPeekAtLastError() { return cudaSuccess; }

static const std::pair<int, const char*> NAMES[] = {
    {cudaErrorInvalidValue, "cudaErrorInvalidValue"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState"},
    {cudaErrorNotReady, "cudaErrorNotReady"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent"},
};
API const char* cudaGetErrorName(cudaError_t error) {
  for (auto& [number, name] : NAMES)
    if (number == error) return name;
  return error ? "cudaErrorUnknown" : "cudaSuccess";
}
API const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : cudaGetErrorName(error);
}

constexpr int MULTIPROCESSORS = 132, SHARED = 48 << 10, MOST_SHARED = 227 << 10;

static int attribute(int which) {
  switch (which) {
    case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return SHARED;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return MOST_SHARED;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return MOST_SHARED + 1024;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMultiProcessorCount: return MULTIPROCESSORS;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrUnifiedAddressing: case cudaDevAttrManagedMemory: case cudaDevAttrMemoryPoolsSupported: return 1;
    default: return 0;
  }
}
RUNTIME cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  *value = attribute(which);
  RETURN(exists(device) ? 0 : cudaErrorInvalidDevice);
}
RUNTIME cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {};
  strcpy(properties->name, "emulated GPU");
  properties->totalGlobalMem = emulated_settings[MEMORY];
  properties->sharedMemPerBlock = SHARED;
  properties->sharedMemPerBlockOptin = MOST_SHARED;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->major = 9;
  properties->multiProcessorCount = MULTIPROCESSORS;
  properties->pciBusID = 1 + device;
  RETURN(exists(device) ? 0 : cudaErrorInvalidDevice);
}
