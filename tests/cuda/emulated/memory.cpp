// Memory of the devices: NaN until it is written, with guards at its end, and out of the host's reach.
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "emulator.h"

#define RUNTIME API cudaError_t
#define RETURN(x) return static_cast<cudaError_t>(x)

constexpr size_t SPACE = size_t(1) << 38, PAGE = 4096, GUARD = 512;
constexpr char UNWRITTEN = char(0xff);  // not a number, if it is read as one

struct Block {
  size_t size, guard;
  char* place;  // whole pages, in which the block is
  size_t place_size;
  int device;
  bool paged, managed;
};
static std::map<char*, Block> blocks;
static std::map<char*, size_t> pinned;
static std::multimap<size_t, char*> free_places;
static std::map<int, size_t> used;
static char *base, *pages_base;  // of the memory with guards, and of that with a page that nobody may touch behind each
static size_t top, pages_top;
static int entered;

static size_t up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

static char* reserve() {
  void* space = mmap(nullptr, SPACE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  madvise(space, SPACE, MADV_HUGEPAGE);  // protection changes by the page
  return static_cast<char*>(space);
}

// ------------------------------------------------------------------------------------------------------------- access

static void protect(int how) {
  if (top) mprotect(base, top, how);
  for (auto& [p, block] : blocks)
    if (block.paged) mprotect(block.place, block.place_size, how);
}
Entered::Entered() {
  if (!entered++) protect(PROT_READ | PROT_WRITE);
}
Entered::~Entered() {
  if (!--entered) protect(PROT_NONE);
}

static thread_local sigjmp_buf* way_out;
static struct sigaction before[2];
static void on_signal(int number, siginfo_t*, void*) {
  if (way_out) siglongjmp(*way_out, number);
  sigaction(number, &before[number == SIGFPE], nullptr);  // not ours: it comes again, for whoever was there before
}
int guarded(const char* name, const std::function<int()>& function) {
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &before[0]);
  sigaction(SIGFPE, &action, &before[1]);
  sigjmp_buf here;
  way_out = &here;
  int status;
  if (int number = sigsetjmp(here, 1))
    status = number == SIGSEGV ? fail(cudaErrorIllegalAddress, "%s: an access to memory that is not there", name)
                               : fail(cudaErrorLaunchFailure, "%s: a whole number divided by zero", name);
  else
    status = function();
  way_out = nullptr;
  sigaction(SIGSEGV, &before[0], nullptr);
  sigaction(SIGFPE, &before[1], nullptr);
  return status;
}

template <class Map>
static auto holder(Map& map, const void* p) {
  auto it = map.upper_bound(static_cast<char*>(const_cast<void*>(p)));
  return it == map.begin() ? map.end() : std::prev(it);
}
Place find(const void* p, size_t bytes) {
  const char* end = static_cast<const char*>(p) + bytes;
  if (auto it = holder(blocks, p); it != blocks.end() && end <= it->first + it->second.size)
    return {it->second.managed ? Where::MANAGED : Where::DEVICE, it->second.device};
  if (auto it = holder(pinned, p); it != pinned.end() && end <= it->first + it->second) return {Where::PINNED, -1};
  return {};
}
bool on_device(const void* p, size_t bytes, int device) {
  const Place place = find(p, bytes);
  return place.where == Where::MANAGED || (place.where == Where::DEVICE && place.device == device);
}
int check_guards(const char* what) {
  for (auto& [p, block] : blocks) {
    const char* guard = p + block.size;
    if (std::any_of(guard, guard + block.guard, [](char byte) { return byte != UNWRITTEN; })) {
      memset(p + block.size, UNWRITTEN, block.guard);
      return fail(cudaErrorIllegalAddress, "%s: wrote beyond an allocation of %zu bytes", what, block.size);
    }
  }
  return 0;
}

// --------------------------------------------------------------------------------------------------------- allocations

static int allocate(void** p, size_t n, bool managed = false) {
  *p = nullptr;
  if (!n) return 0;
  if (emulated_settings[FAILING_ALLOCATION] && !--emulated_settings[FAILING_ALLOCATION])
    return cudaErrorMemoryAllocation;
  const bool paged = emulated_settings[PAGES] && !managed;
  const size_t whole = up(n, 256), size = paged ? up(whole, PAGE) : up(n + GUARD, PAGE);  // CUDA's boundaries: 256 bytes
  if (used[current] + size > size_t(emulated_settings[MEMORY])) return cudaErrorMemoryAllocation;
  if (!base) base = reserve(), pages_base = reserve();
  char* place;
  if (managed) {
    place = static_cast<char*>(aligned_alloc(PAGE, size));
  } else if (paged) {
    place = pages_base + pages_top;
    pages_top += size + PAGE;
  } else if (auto it = free_places.find(size); it != free_places.end()) {
    place = it->second;
    free_places.erase(it);
  } else {
    place = base + top;
    top += size;
  }
  char* at = paged ? place + size - whole : place;
  const Block block{n, paged ? whole - n : GUARD, place, size, current, paged, managed};
  Entered enter;
  if (paged) mprotect(place, size, PROT_READ | PROT_WRITE);
  else if (!managed) mprotect(base, top, PROT_READ | PROT_WRITE);
  memset(at, UNWRITTEN, n);
  memset(at + n, UNWRITTEN, block.guard);
  blocks[at] = block;
  used[current] += size;
  emulated_counts[ALLOCATIONS]++;
  *p = at;
  return 0;
}
static int release(void* p) {
  auto it = blocks.find(static_cast<char*>(p));
  if (it == blocks.end()) return fail(cudaErrorInvalidValue, "memory is freed that was not allocated");
  const Block block = it->second;
  {
    Entered enter;
    check_guards("cudaFree");
    if (!block.paged) memset(p, UNWRITTEN, block.size);
  }
  blocks.erase(it);
  used[block.device] -= block.place_size;
  if (block.managed) {
    free(block.place);
  } else if (block.paged) {
    madvise(block.place, block.place_size, MADV_DONTNEED);
    mprotect(block.place, block.place_size, PROT_NONE);
  } else {
    free_places.emplace(block.place_size, block.place);
  }
  return 0;
}

RUNTIME cudaMalloc(void** p, size_t n) { LOCK; if (broken()) RETURN(broken()); RETURN(allocate(p, n)); }
RUNTIME cudaMallocManaged(void** p, size_t n, unsigned) { LOCK; RETURN(allocate(p, n, true)); }
RUNTIME cudaFree(void* p) {
  LOCK;
  if (!p) return cudaSuccess;
  finish_all();
  const int status = release(p);
  RETURN(broken() ? broken() : status);
}
RUNTIME cudaMallocAsync(void** p, size_t n, cudaStream_t handle) {
  LOCK;
  Stream* stream = stream_of(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (stream->capture) RETURN(refuse(stream, cudaErrorStreamCaptureUnsupported));  // CUDA makes it a node of the graph
  RETURN(allocate(p, n));
}
RUNTIME cudaFreeAsync(void* p, cudaStream_t handle) { LOCK; RETURN(ask(stream_of(handle), [p] { return release(p); })); }
RUNTIME cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  *pool = reinterpret_cast<cudaMemPool_t>(size_t(device) + 1);
  return cudaSuccess;
}
RUNTIME cudaDeviceGetMemPool(cudaMemPool_t* pool, int device) { return cudaDeviceGetDefaultMemPool(pool, device); }
RUNTIME cudaDeviceSetMemPool(int, cudaMemPool_t) { return cudaSuccess; }
RUNTIME cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
static std::map<cudaMemPool_t, uint64_t> thresholds;  // CuPy keeps its limit there
RUNTIME cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr which, void* value) {
  LOCK;
  if (which == cudaMemPoolAttrReleaseThreshold) thresholds[pool] = *static_cast<uint64_t*>(value);
  return cudaSuccess;
}
RUNTIME cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr which, void* value) {
  LOCK;
  const uint64_t bytes = used[int(reinterpret_cast<size_t>(pool)) - 1];
  *static_cast<uint64_t*>(value) = which == cudaMemPoolAttrReleaseThreshold ? thresholds[pool] : bytes;
  return cudaSuccess;
}

RUNTIME cudaHostAlloc(void** p, size_t n, unsigned) {
  LOCK;
  *p = aligned_alloc(PAGE, up(n + 1, PAGE));
  memset(*p, UNWRITTEN, n);
  pinned[static_cast<char*>(*p)] = n;
  return cudaSuccess;
}
RUNTIME cudaMallocHost(void** p, size_t n) { return cudaHostAlloc(p, n, 0); }
RUNTIME cudaFreeHost(void* p) {
  LOCK;
  finish_all();
  if (pinned.erase(static_cast<char*>(p))) free(p);
  return cudaSuccess;
}
RUNTIME cudaMemGetInfo(size_t* available, size_t* total) {
  LOCK;
  *total = emulated_settings[MEMORY];
  *available = *total - std::min(*total, used[current]);
  return cudaSuccess;
}
RUNTIME cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  LOCK;
  const Place place = find(p, 1);
  *attributes = {};
  attributes->type = place.where == Where::DEVICE    ? cudaMemoryTypeDevice
                     : place.where == Where::MANAGED ? cudaMemoryTypeManaged
                     : place.where == Where::PINNED  ? cudaMemoryTypeHost
                                                     : cudaMemoryTypeUnregistered;
  attributes->device = place.device;
  attributes->devicePointer = place.where == Where::NOWHERE ? nullptr : const_cast<void*>(p);
  const bool reachable = place.where == Where::PINNED || place.where == Where::MANAGED;
  attributes->hostPointer = reachable ? const_cast<void*>(p) : nullptr;
  return cudaSuccess;
}
