// The ops that this library implements, for the Python side: which they are, and calls so far.
// Schemas, fakes and gradients are registered there (kernels/_op.py): once, for every device.
#include "op.h"

namespace ivcl {

static std::vector<Calls*>& all_calls() {
  static std::vector<Calls*> list;
  return list;
}

Calls::Calls(const char* name) : name(name) { all_calls().push_back(this); }

}  // namespace ivcl

// What the objects were built from, for the Python side to find before it loads one.
extern "C" __attribute__((used)) const char ivcl_fast_sources[] = "ivcl_fast sources " IVCL_SOURCES;

#define IVCL_EXPORT extern "C" __attribute__((visibility("default")))

IVCL_EXPORT int64_t ivcl_fast_op_count() { return ivcl::all_calls().size(); }
IVCL_EXPORT const char* ivcl_fast_op_name(int64_t i) { return ivcl::all_calls()[i]->name; }
IVCL_EXPORT int64_t ivcl_fast_op_calls(int64_t i) { return ivcl::all_calls()[i]->count.load(); }
