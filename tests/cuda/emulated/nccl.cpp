// NCCL's sum over the GPUs of several processes of one machine, which meet in shared memory. Its header is in no wheel.
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "emulator.h"

enum Result { SUCCESS, UNHANDLED_CUDA_ERROR, SYSTEM_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE };
enum { FLOAT = 7, DOUBLE = 8, SUM = 0 };  // ncclDataType_t, ncclRedOp_t
constexpr int MOST_RANKS = 8;
constexpr size_t CHUNK = 1 << 16;  // bytes that a rank shows the others at a time
constexpr double PATIENCE = 60;    // seconds

struct Id {
  char name[128];
};
struct Room {  // zeros at first
  std::atomic<int> arrived, round;
  int devices[MOST_RANKS];
  alignas(16) char chunks[MOST_RANKS][CHUNK];
};
struct Comm {
  Room* room;
  int size, rank, device;

  bool meet() const {  // false if somebody does not come
    timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    const int round = room->round;
    if (++room->arrived == size) {
      room->arrived = 0;
      ++room->round;
    }
    while (room->round == round) {
      sched_yield();
      clock_gettime(CLOCK_MONOTONIC, &now);
      if (now.tv_sec - begin.tv_sec > PATIENCE) return false;
    }
    return true;
  }
};

API int ncclGetVersion(int* version) { *version = 22501; return SUCCESS; }
API const char* ncclGetErrorString(int result) {
  return result == INVALID_USAGE ? "invalid usage" : result == INVALID_ARGUMENT ? "invalid argument" : "system error";
}
API int ncclGetUniqueId(Id* id) {
  static int number;
  snprintf(id->name, sizeof id->name, "/emulated-nccl-%d-%d", getpid(), number++);
  return SUCCESS;
}
API int ncclCommInitRankConfig(Comm** comm, int size, Id id, int rank, void*) {
  *comm = nullptr;
  if (size > MOST_RANKS || rank < 0 || rank >= size) return INVALID_ARGUMENT;
  const int file = shm_open(id.name, O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, sizeof(Room))) return SYSTEM_ERROR;
  void* memory = mmap(nullptr, sizeof(Room), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return SYSTEM_ERROR;
  auto* own = new Comm{static_cast<Room*>(memory), size, rank, current};
  own->room->devices[rank] = current;
  const bool met = own->meet();
  if (rank == 0) shm_unlink(id.name);
  if (!met) return SYSTEM_ERROR;
  for (int other = 0; other < size; ++other)
    if (other != rank && own->room->devices[other] == current) return INVALID_USAGE;  // two ranks on one GPU
  *comm = own;
  return SUCCESS;
}
API int ncclCommDestroy(Comm* comm) {
  munmap(comm->room, sizeof(Room));
  delete comm;
  return SUCCESS;
}
API int ncclCommAbort(Comm* comm) { return ncclCommDestroy(comm); }
API int ncclCommGetAsyncError(Comm*, int* result) { *result = SUCCESS; return SUCCESS; }
API int ncclCommCount(Comm* comm, int* size) { *size = comm->size; return SUCCESS; }
API int ncclCommUserRank(Comm* comm, int* rank) { *rank = comm->rank; return SUCCESS; }
API int ncclCommCuDevice(Comm* comm, int* device) { *device = comm->device; return SUCCESS; }
API int ncclGroupStart() { return SUCCESS; }
API int ncclGroupEnd() { return SUCCESS; }

template <class T>
static int add_up(const Comm& comm, const T* from, T* to, size_t count) {
  constexpr size_t MOST = CHUNK / sizeof(T);
  auto of = [&](int rank) { return reinterpret_cast<T*>(comm.room->chunks[rank]); };
  for (size_t begin = 0; begin < count; begin += MOST) {
    const size_t n = std::min(MOST, count - begin);
    memcpy(of(comm.rank), from + begin, n * sizeof(T));
    if (!comm.meet()) return fail(cudaErrorLaunchFailure, "ncclAllReduce: a rank does not come");
    for (size_t i = 0; i < n; ++i) {
      T sum = of(0)[i];
      for (int rank = 1; rank < comm.size; ++rank) sum += of(rank)[i];
      to[begin + i] = sum;
    }
    if (!comm.meet()) return fail(cudaErrorLaunchFailure, "ncclAllReduce: a rank does not come");
  }
  return 0;
}
API int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, Comm* comm, cudaStream_t handle) {
  LOCK;
  Stream* stream = stream_of(handle);
  if (!stream || stream->device != comm->device || (type != FLOAT && type != DOUBLE) || op != SUM)
    return INVALID_ARGUMENT;
  const int error = ask_urgently(stream, [=, comm = *comm] {
    const size_t bytes = count * (type == FLOAT ? 4 : 8);
    if (!on_device(from, bytes, comm.device) || !on_device(to, bytes, comm.device))
      return fail(cudaErrorIllegalAddress, "ncclAllReduce: memory that is not on the device");
    if (type == FLOAT) return add_up(comm, static_cast<const float*>(from), static_cast<float*>(to), count);
    return add_up(comm, static_cast<const double*>(from), static_cast<double*>(to), count);
  });
  return error ? UNHANDLED_CUDA_ERROR : SUCCESS;
}
