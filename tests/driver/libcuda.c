// A libcuda.so.1 without a GPU: every entry point hands its arguments, as 64-bit words, to one function that library.py sets.
// Reading more words than the caller passed is harmless in the x86-64 calling convention; none of these takes a float.
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

typedef uint64_t W;
static int (*handler)(const char*, W*);
static int (*known)(const char*);
static void* self;

void stand_in_install(int (*h)(const char*, W*), int (*k)(const char*)) { handler = h, known = k; }

int stand_in_call(const char* name, W* words) {
  if (handler) return handler(name, words);
  if (!strncmp(name, "cuGetError", 10)) *(const char**)words[1] = "the driver has shut down";
  return strstr(name, "Free") || strstr(name, "Destroy") || strstr(name, "Unload") ? 0 : 4;  // CUDA_ERROR_DEINITIALIZED
}

#define ENTRY(name)                                                           \
  int name(W a, W b, W c, W d, W e, W f, W g, W h, W i, W j, W k, W l) {      \
    W words[12] = {a, b, c, d, e, f, g, h, i, j, k, l};                       \
    return stand_in_call(#name, words);                                       \
  }
#include "entries.h"

static void* find(const char* name) {
  if (!self) self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  return known && known(name) ? dlsym(self, name) : 0;
}
int cuGetProcAddress_v2(const char* name, void** out, int version, W flags, int* status) {
  *out = !strcmp(name, "cuGetProcAddress") ? (void*)cuGetProcAddress_v2 : find(name);
  if (status) *status = *out ? 0 : 1;
  return *out ? 0 : 500;  // CUDA_ERROR_NOT_FOUND
}
int cuGetProcAddress(const char* name, void** out, int version, W flags) {
  return cuGetProcAddress_v2(name, out, version, flags, 0);
}
