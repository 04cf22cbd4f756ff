// The compiled module: whatever functions are linked into it.
#include "bindings.h"

namespace {

// Whether this CPU has AVX-512's conversion to bf16.
bool has_avx512_bf16() {
#if defined(__x86_64__) && defined(__GNUC__)
    return __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

}  // namespace

PYBIND11_MODULE(CD_MODULE, m) {
    m.doc() = "Compiled operators of cosmos-distill (raw addresses; use cosmos_distill.ops instead).";
    m.def("has_avx512_bf16", &has_avx512_bf16);
    m.attr("interface") = cd::INTERFACE;
    cd::bind_operators(m);
}
