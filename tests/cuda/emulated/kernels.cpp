// Kernels: NVRTC is g++, which makes a library of a program; the driver loads it and launches what is in it.
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "emulator.h"

using std::string;

// ------------------------------------------------------------------------------------------------------- the compiler

enum Result { SUCCESS = 0, INVALID_OPTION = 5, COMPILATION = 6 };  // nvrtcResult

struct Program {
  string source, log = {}, image = {};
  std::vector<string> expressions = {};
  std::map<string, string> lowered = {};
};
static string home, flags;  // the folder with device.h, and what else g++ is told
API void emulated_compiler(const char* folder, const char* more) { home = folder, flags = more; }

API const char* nvrtcGetErrorString(int error) {
  return error == COMPILATION ? "NVRTC_ERROR_COMPILATION" : error ? "NVRTC_ERROR_INVALID_OPTION" : "NVRTC_SUCCESS";
}
API int nvrtcVersion(int* major, int* minor) {
  *major = CUDART_VERSION / 1000;
  *minor = CUDART_VERSION / 10 % 100;
  return SUCCESS;
}
API int nvrtcGetNumSupportedArchs(int* count) { *count = 1; return SUCCESS; }
API int nvrtcGetSupportedArchs(int* architectures) { *architectures = 90; return SUCCESS; }
API int nvrtcCreateProgram(Program** program, const char* source, const char*, int, const char* const*,
                           const char* const*) {
  *program = new Program{source};
  return SUCCESS;
}
API int nvrtcDestroyProgram(Program** program) { delete *program; *program = nullptr; return SUCCESS; }
API int nvrtcAddNameExpression(Program* program, const char* expression) {
  program->expressions.push_back(expression);
  return SUCCESS;
}

static string quoted(const string& text) {
  return " '" + std::regex_replace(text, std::regex("'"), "'\\''") + "'";
}
static string content(const std::filesystem::path& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// The program as g++ takes it, followed by an entry for each kernel, or nothing if it has none. What is not C++ is dynamic
// shared memory and PTX.
static string translated(Program* program) {
  static const std::pair<std::regex, const char*> RULES[] = {
      {std::regex(R"(extern\s+__shared__\s+([^;\[\]]*?)(\w+)\s*\[\s*\]\s*;)"),
       "auto* $2 = reinterpret_cast<$1*>(emulated::dynamic);"},
      {std::regex(R"re(asm\s*\(\s*"cvt\.rn\.f16\.f32 %0, %1;"\s*:\s*"=h"\((\w+)\)\s*:\s*"f"\((\w+)\)\s*\))re"),
       "$1 = emulated::to_half($2)"},
      {std::regex(R"re(asm\s*\(\s*"cvt\.f32\.f16 %0, %1;"\s*:\s*"=f"\((\w+)\)\s*:\s*"h"\((\w+)\)\s*\))re"),
       "$1 = emulated::from_half($2)"},
  };
  string text = program->source;
  for (auto& [pattern, replacement] : RULES) text = std::regex_replace(text, pattern, replacement);
  static const std::regex KERNEL(
      R"(extern\s*"C"\s*__global__\s*void\s*(?:__launch_bounds__\s*\([^)]*\))?\s*(\w+)\s*\()");
  std::set<string> names;
  for (std::sregex_iterator it(text.begin(), text.end(), KERNEL), end; it != end; ++it) names.insert((*it)[1]);
  if (names.empty() && program->expressions.empty()) return "";
  text += "\n";
  for (auto& name : names) text += "EMULATED_KERNEL(" + name + ", " + name + ")\n";
  for (auto& expression : program->expressions) {
    const string name = "expression" + std::to_string(program->lowered.size());
    program->lowered[expression] = name;
    text += "EMULATED_KERNEL(" + name + ", " + expression + ")\n";
  }
  return text;
}
API int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
  static const std::regex PASSED("-[DI].*"),
      IGNORED("--?(std|arch|gpu-architecture|ftz)=.*|-default-device|--device-as-default-execution-space|--pch|"
              "--use_fast_math");
  string passed;
  for (int i = 0; i < count; ++i) {
    const string option = options[i];
    if (option == "-I" || option == "-D") {
      passed += " " + option + quoted(options[++i]);
    } else if (std::regex_match(option, PASSED)) {
      passed += quoted(option);
    } else if (!std::regex_match(option, IGNORED)) {
      program->log = "the emulated NVRTC knows no option " + option;
      return INVALID_OPTION;
    }
  }
  const string text = translated(program);
  if (text.empty()) {  // CuPy compiles such a program to learn about NVRTC, and reads it as text
    program->image = "// no kernels";
    return SUCCESS;
  }
  char folder[] = "/tmp/emulated-cuda-XXXXXX";
  if (!mkdtemp(folder)) return COMPILATION;
  const std::filesystem::path path = folder;
  std::ofstream(path / "kernel.cpp") << text;
  const char* header = text.find("<cupy/complex.cuh>") == string::npos ? "/device.h" : "/with_cupy.h";
  const string object = "g++ " + flags + " -include " + quoted(home + header) + passed + " -c kernel.cpp -o kernel.o";
  const string linked = std::regex_replace(flags, std::regex("-fsanitize=thread"), "");  // we watch the threads ourselves
  const string library = "g++ " + linked + " -shared kernel.o -o kernel.so";
  const int status = system(("cd" + quoted(folder) + " && (" + object + " && " + library + ") > log 2>&1").c_str());
  program->log = content(path / "log");
  program->image = content(path / "kernel.so");
  std::filesystem::remove_all(path);
  {
    LOCK;
    emulated_counts[COMPILATIONS]++;
  }
  return status ? COMPILATION : SUCCESS;
}
API int nvrtcGetLoweredName(Program* program, const char* expression, const char** name) {
  *name = program->lowered[expression].c_str();
  return SUCCESS;
}
API int nvrtcGetProgramLogSize(Program* program, size_t* n) { *n = program->log.size() + 1; return SUCCESS; }
API int nvrtcGetProgramLog(Program* program, char* to) { strcpy(to, program->log.c_str()); return SUCCESS; }
API int nvrtcGetCUBINSize(Program* program, size_t* n) { *n = program->image.size(); return SUCCESS; }
API int nvrtcGetCUBIN(Program* program, char* to) {
  memcpy(to, program->image.data(), program->image.size());
  return SUCCESS;
}
API int nvrtcGetPTXSize(Program* program, size_t* n) { return nvrtcGetCUBINSize(program, n); }
API int nvrtcGetPTX(Program* program, char* to) { return nvrtcGetCUBIN(program, to); }

// --------------------------------------------------------------------------------------------------------- the driver

#define DRIVER API CUresult
#define RETURN(x) return static_cast<CUresult>(x)

struct Module {
  void* library;
  int device;
  ~Module() { dlclose(library); }
};
using Launch = int (*)(const unsigned* shape, size_t shared, long order, void** arguments);
struct Function {
  std::shared_ptr<Module> module;
  string name;
  Launch launch;
  std::vector<long> sizes;  // of the parameters, in bytes; negative for pointers
  long own_shared;
  int most_shared = 48 << 10;
};

static int context;  // its address stands for every device's
DRIVER cuInit(unsigned) { return CUDA_SUCCESS; }
DRIVER cuDriverGetVersion(int* version) { *version = CUDART_VERSION; return CUDA_SUCCESS; }
DRIVER cuDeviceGetCount(int* count) { *count = emulated_settings[DEVICES]; return CUDA_SUCCESS; }
DRIVER cuDeviceGet(CUdevice* device, int number) { *device = number; return CUDA_SUCCESS; }
DRIVER cuCtxGetDevice(CUdevice* device) { *device = current; return CUDA_SUCCESS; }
DRIVER cuCtxGetCurrent(CUcontext* to) { *to = reinterpret_cast<CUcontext>(&context); return CUDA_SUCCESS; }
DRIVER cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
DRIVER cuDevicePrimaryCtxRetain(CUcontext* to, CUdevice) { return cuCtxGetCurrent(to); }
DRIVER cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
DRIVER cuStreamGetCtx(CUstream, CUcontext* to) { return cuCtxGetCurrent(to); }
DRIVER cuGetErrorName(CUresult error, const char** name) {
  *name = error == CUDA_ERROR_NOT_FOUND        ? "CUDA_ERROR_NOT_FOUND"
          : error == CUDA_ERROR_INVALID_HANDLE ? "CUDA_ERROR_INVALID_HANDLE"
          : error == CUDA_ERROR_INVALID_VALUE  ? "CUDA_ERROR_INVALID_VALUE"
          : error                              ? cudaGetErrorName(static_cast<cudaError_t>(error))
                                               : "CUDA_SUCCESS";
  return CUDA_SUCCESS;
}
DRIVER cuGetErrorString(CUresult error, const char** text) { return cuGetErrorName(error, text); }

DRIVER cuModuleLoadData(CUmodule* module, const void* image) {
  LOCK;
  static long number;  // dlopen knows a library by its path
  const string path = "/tmp/emulated-cuda-" + std::to_string(getpid()) + "-" + std::to_string(++number) + ".so";
  const auto* elf = static_cast<const char*>(image);
  size_t sections;
  unsigned short size, count;  // of the table of sections, with which g++'s libraries end
  memcpy(&sections, elf + 40, 8), memcpy(&size, elf + 58, 2), memcpy(&count, elf + 60, 2);
  if (memcmp(elf, "\177ELF", 4)) return CUDA_ERROR_INVALID_IMAGE;
  std::ofstream(path, std::ios::binary).write(elf, sections + size_t(size) * count);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  unlink(path.c_str());
  if (!library) {
    fprintf(stderr, "emulated CUDA: %s\n", dlerror());
    return CUDA_ERROR_INVALID_IMAGE;
  }
  *module = reinterpret_cast<CUmodule>(new std::shared_ptr<Module>(new Module{library, current}));
  return CUDA_SUCCESS;
}
DRIVER cuModuleUnload(CUmodule module) {
  LOCK;
  delete reinterpret_cast<std::shared_ptr<Module>*>(module);  // launches that wait keep theirs
  return CUDA_SUCCESS;
}
DRIVER cuModuleGetFunction(CUfunction* function, CUmodule handle, const char* name) {
  LOCK;
  auto& module = *reinterpret_cast<std::shared_ptr<Module>*>(handle);
  auto entry = [&](const char* prefix) { return dlsym(module->library, (string(prefix) + name).c_str()); };
  auto launch = reinterpret_cast<Launch>(entry("emulated_launch_"));
  if (!launch) return CUDA_ERROR_NOT_FOUND;
  long sizes[256];
  const int count = reinterpret_cast<int (*)(long*)>(entry("emulated_sizes_"))(sizes);
  const long own_shared = reinterpret_cast<long (*)()>(entry("emulated_shared_"))();
  *function = reinterpret_cast<CUfunction>(new Function{module, name, launch, {sizes, sizes + count}, own_shared});
  return CUDA_SUCCESS;
}
DRIVER cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction handle) {
  auto* function = reinterpret_cast<Function*>(handle);
  *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK           ? 1024
           : which == CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES             ? function->own_shared
           : which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ? function->most_shared
                                                                      : 0;
  return CUDA_SUCCESS;
}
DRIVER cuFuncSetAttribute(CUfunction handle, CUfunction_attribute which, int value) {
  auto* function = reinterpret_cast<Function*>(handle);
  if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  int most;
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, current);
  if (value + function->own_shared > most) return CUDA_ERROR_INVALID_VALUE;
  function->most_shared = value;
  return CUDA_SUCCESS;
}
DRIVER cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  *blocks = 2;
  return CUDA_SUCCESS;
}

// The arguments are copied now, and looked at when the kernel runs: every pointer must be to memory of its device.
static int run(const Function& function, const std::vector<unsigned>& shape, unsigned shared,
               std::vector<string> values) {
  const char* name = function.name.c_str();
  std::vector<void*> arguments;
  for (size_t i = 0; i < values.size(); ++i) {
    arguments.push_back(values[i].data());
    void* p;
    if (function.sizes[i] > 0 || !(memcpy(&p, values[i].data(), sizeof p), p)) continue;
    if (!on_device(p, 0, function.module->device) && find(p, 0).where != Where::PINNED)
      return fail(cudaErrorIllegalAddress, "%s: parameter %zu (%p) is no memory of device %d", name, i, p,
                  function.module->device);
  }
  const int status =
      guarded(name, [&] { return function.launch(shape.data(), shared, emulated_settings[ORDER], arguments.data()); });
  if (status == -1) return fail(cudaErrorLaunchFailure, "%s: threads of a block wait at different barriers", name);
  if (status == -2) return fail(cudaErrorIllegalAddress, "%s: wrote beyond its shared memory", name);
  if (status == -3) return fail(cudaErrorLaunchFailure, "%s: threads race", name);
  return status;
}
DRIVER cuLaunchKernel(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, CUstream stream_handle, void** arguments, void**) {
  LOCK;
  const Function& function = *reinterpret_cast<Function*>(handle);
  const bool fits = gx && gx <= 2147483647u && gy && gy <= 65535 && gz && gz <= 65535 && bx && by && bz && bz <= 64 &&
                    1L * bx * by * bz <= 1024 && shared + function.own_shared <= function.most_shared;
  if (!fits) return CUDA_ERROR_INVALID_VALUE;
  Stream* stream = stream_of(stream_handle);
  if (!stream || stream->device != current || function.module->device != current) {
    fail(cudaErrorInvalidResourceHandle, "%s: launched on a stream or from a module of another device",
         function.name.c_str());
    return CUDA_ERROR_INVALID_HANDLE;
  }
  emulated_counts[LAUNCHES]++;
  std::vector<string> values;
  for (size_t i = 0; i < function.sizes.size(); ++i)
    values.emplace_back(static_cast<char*>(arguments[i]), std::abs(function.sizes[i]));
  std::vector<unsigned> shape{gx, gy, gz, bx, by, bz};
  RETURN(ask(stream, [=] { return run(function, shape, shared, values); }));
}
