// Finds races, if g++ instruments kernels for it (-fsanitize=thread): it then calls the functions at the end of this file
// at each access to memory. Included by device.h, within its namespace.
//
// Two accesses to the same memory by different threads, one of them a write, must be in an order. Within a block that
// takes a barrier between them, or one of the warp that both are in. Between blocks it takes an atomic operation of the
// first block, after a fence that follows its access, and then one of the second block; the barriers around it make it
// count for whole blocks.
struct Moment {
  int block, thread;
  long barriers, warp_barriers;  // of the block and of the warp, before this
  long time;
};
struct Cell {
  Moment write, reads[2];  // reads since the last write by two threads; whoever writes now cannot be both of them
  int wrote = 0, readers = 0;
};
static std::unordered_map<size_t, Cell>* cells;
static std::unordered_map<int, std::vector<Moment>>*fences, *atomics;
static long barriers, warp_barriers[MOST_THREADS / WARP], clock_of_accesses;
static int races_found;
static bool busy = true;  // the containers are instrumented as well
struct Busy {
  UNWATCHED Busy() { busy = true; }
  UNWATCHED ~Busy() { busy = false; }
};

UNWATCHED static int this_block() { return (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x; }
UNWATCHED static Moment now() {
  return {this_block(), current, barriers, warp_barriers[current / WARP], ++clock_of_accesses};
}
UNWATCHED static bool in_order(const Moment& a, const Moment& b) {
  if (a.block == b.block) {
    const bool same_warp = a.thread / WARP == b.thread / WARP;
    return a.thread == b.thread || a.barriers != b.barriers || (same_warp && a.warp_barriers != b.warp_barriers);
  }
  for (const Moment& release : (*atomics)[a.block]) {
    if (release.time < a.time || (release.thread != a.thread && release.barriers == a.barriers)) continue;
    bool fenced = false;
    for (const Moment& fence : (*fences)[a.block])
      fenced |= fence.time < release.time && ((fence.thread == a.thread && fence.time > a.time) ||
                                              (fence.thread == release.thread && fence.barriers > a.barriers));
    for (const Moment& acquire : (*atomics)[b.block])
      if (fenced && acquire.time > release.time && (acquire.thread == b.thread || acquire.barriers < b.barriers))
        return true;
  }
  return false;
}
UNWATCHED static void report(const Moment& a, const Moment& b, size_t address) {
  if (!races_found++)
    fprintf(stderr, "emulated CUDA: thread %d of block %d and thread %d of block %d race at %#zx\n", a.thread, a.block,
            b.thread, b.block, address);
}
UNWATCHED static void touch(size_t address, size_t bytes, bool writes) {
  const size_t first = reinterpret_cast<size_t>(stacks);
  if (busy || address - first < MOST_THREADS * STACK) return;  // a thread's own
  Busy now_on;
  const Moment moment = now();
  const size_t unit = bytes < 4 ? 1 : 4;
  for (size_t at = address / unit * unit; at < address + bytes; at += unit) {
    Cell& cell = (*cells)[at];
    if (cell.wrote && !in_order(cell.write, moment)) report(cell.write, moment, at);
    if (writes) {
      for (int i = 0; i < cell.readers; ++i)
        if (!in_order(cell.reads[i], moment)) report(cell.reads[i], moment, at);
      cell.write = moment;
      cell.wrote = 1;
      cell.readers = 0;
    } else {
      Moment& latest = cell.reads[cell.readers - (cell.readers > 0)];
      const bool same = cell.readers && latest.thread == moment.thread && latest.block == moment.block;
      if (!same && cell.readers == 2) cell.reads[0] = latest;
      if (!same && cell.readers < 2) ++cell.readers;
      cell.reads[cell.readers - 1] = moment;
    }
  }
}

UNWATCHED static void begin_launch() {
  cells = new std::unordered_map<size_t, Cell>;
  fences = new std::unordered_map<int, std::vector<Moment>>;
  atomics = new std::unordered_map<int, std::vector<Moment>>;
  races_found = 0;
  busy = false;
}
UNWATCHED static void forget(char* begin, char* end) {
  for (char* p = begin; p < end; ++p) cells->erase(reinterpret_cast<size_t>(p));
}
UNWATCHED static void begin_block(size_t room) {  // shared memory is a new one
  Busy now_on;
  forget(dynamic, dynamic + room);
  if (__start_cuda_shared) forget(__start_cuda_shared, __stop_cuda_shared);
}
UNWATCHED static void block_barrier() { ++barriers; }
UNWATCHED static void warp_barrier(int warp) { ++warp_barriers[warp]; }
UNWATCHED static void fence() {
  Busy now_on;
  (*fences)[this_block()].push_back(now());
}
UNWATCHED static void atomic() {
  Busy now_on;
  (*atomics)[this_block()].push_back(now());
}
UNWATCHED static int races() {
  busy = true;
  delete cells;
  delete fences;
  delete atomics;
  return races_found ? -3 : 0;
}

#define WATCH(name, bytes, writes) \
  extern "C" UNWATCHED void __tsan_##name(void* p) { touch(reinterpret_cast<size_t>(p), bytes, writes); }
#define WATCH_SIZE(bytes)                       \
  WATCH(read##bytes, bytes, false)              \
  WATCH(write##bytes, bytes, true)              \
  WATCH(unaligned_read##bytes, bytes, false)    \
  WATCH(unaligned_write##bytes, bytes, true)    \
  WATCH(volatile_read##bytes, bytes, false)     \
  WATCH(volatile_write##bytes, bytes, true)
WATCH_SIZE(1)
WATCH_SIZE(2)
WATCH_SIZE(4)
WATCH_SIZE(8)
WATCH_SIZE(16)
extern "C" UNWATCHED void __tsan_read_range(void* p, size_t n) { touch(reinterpret_cast<size_t>(p), n, false); }
extern "C" UNWATCHED void __tsan_write_range(void* p, size_t n) { touch(reinterpret_cast<size_t>(p), n, true); }
extern "C" UNWATCHED void __tsan_func_entry(void*) {}
extern "C" UNWATCHED void __tsan_func_exit() {}
extern "C" UNWATCHED void __tsan_init() {}
