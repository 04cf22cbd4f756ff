// The border to Python: with bindings_cuda.cpp, all that knows pybind11. Tensors cross it as addresses: the caller
// (one cpu.py per operator) has checked shapes, dtypes and layouts and keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "adaln.h"
#include "qk_norm_rope.h"

namespace py = pybind11;

#if defined(COSMOS_DISTILL_CUDA)
void bind_cuda(py::module_& module);  // bindings_cuda.cpp
#endif

namespace {

using Address = std::uintptr_t;

const float* in(Address a) { return reinterpret_cast<const float*>(a); }
float* out(Address a) { return reinterpret_cast<float*>(a); }

void adaln_forward(int64_t groups, int64_t rows, int64_t width, Address x, Address shift, int64_t shift_stride,
                   Address scale, int64_t scale_stride, float eps, Address result, Address stats) {
    cd::adaln_forward({groups, rows, width}, in(x), {in(shift), shift_stride}, {in(scale), scale_stride}, eps,
                      out(result), out(stats));
}

void adaln_backward(int64_t groups, int64_t rows, int64_t width, Address grad, Address x, Address stats,
                    Address scale, int64_t scale_stride, Address dx, Address dshift, Address dscale) {
    cd::adaln_backward({groups, rows, width}, in(grad), in(x), in(stats), {in(scale), scale_stride}, out(dx),
                       out(dshift), out(dscale));
}

void gated_adaln_forward(int64_t groups, int64_t rows, int64_t width, Address x, Address y, Address gate,
                         int64_t gate_stride, Address shift, int64_t shift_stride, Address scale,
                         int64_t scale_stride, float eps, Address x_new, Address result, Address stats) {
    cd::gated_adaln_forward({groups, rows, width}, in(x), in(y), {in(gate), gate_stride},
                            {in(shift), shift_stride}, {in(scale), scale_stride}, eps, out(x_new), out(result),
                            out(stats));
}

void gated_adaln_backward(int64_t groups, int64_t rows, int64_t width, Address grad, Address grad_x_new,
                          Address x_new, Address y, Address stats, Address gate, int64_t gate_stride,
                          Address scale, int64_t scale_stride, Address dx, Address dy, Address dgate,
                          Address dshift, Address dscale) {
    cd::gated_adaln_backward({groups, rows, width}, in(grad), in(grad_x_new), in(x_new), in(y), in(stats),
                             {in(gate), gate_stride}, {in(scale), scale_stride}, out(dx), out(dy), out(dgate),
                             out(dshift), out(dscale));
}

// `grid` is empty for full tables, or (frames, height, width, t, h, w).
cd::Tables tables(Address cos, Address sin, bool per_sample, const std::vector<int64_t>& grid) {
    if (grid.empty()) return {in(cos), in(sin), per_sample, 0, 0, 0, 0, 0, 0};
    return {in(cos), in(sin), per_sample, grid.at(0), grid.at(1), grid.at(2), grid.at(3), grid.at(4), grid.at(5)};
}

void norm_rope_forward(int64_t batch, int64_t length, int64_t heads, int64_t head_dim, int64_t stride,
                       Address x, Address weight, Address cos, Address sin, bool per_sample,
                       const std::vector<int64_t>& grid, float eps, Address result, Address rstd) {
    cd::norm_rope_forward({batch, length, heads, head_dim, stride}, in(x), in(weight),
                          tables(cos, sin, per_sample, grid), eps, out(result), out(rstd));
}

void norm_rope_backward(int64_t batch, int64_t length, int64_t heads, int64_t head_dim, int64_t stride,
                        Address grad, Address x, Address rstd, Address weight, Address cos, Address sin,
                        bool per_sample, const std::vector<int64_t>& grid, Address dx, Address dweight) {
    cd::norm_rope_backward({batch, length, heads, head_dim, stride}, in(grad), in(x), in(rstd), in(weight),
                           tables(cos, sin, per_sample, grid), out(dx), out(dweight));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Compiled operators of cosmos-distill (raw addresses; use cosmos_distill.ops instead).";
    const auto release = py::call_guard<py::gil_scoped_release>();
    m.def("adaln_forward", &adaln_forward, release);
    m.def("adaln_backward", &adaln_backward, release);
    m.def("gated_adaln_forward", &gated_adaln_forward, release);
    m.def("gated_adaln_backward", &gated_adaln_backward, release);
    m.def("norm_rope_forward", &norm_rope_forward, release);
    m.def("norm_rope_backward", &norm_rope_backward, release);
#if defined(COSMOS_DISTILL_CUDA)
    bind_cuda(m);
#endif
}
