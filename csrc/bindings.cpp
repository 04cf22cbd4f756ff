// The border to Python: with bindings_cuda.cpp, all that knows pybind11. Tensors cross it as addresses: the caller
// (one cpu.py per operator) has checked shapes, dtypes and layouts and keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <vector>

#include "adaln.h"
#include "adamw.h"
#include "dm_loss.h"
#include "qk_norm_rope.h"

namespace py = pybind11;

#if defined(COSMOS_DISTILL_CUDA)
void bind_cuda(py::module_& module);  // bindings_cuda.cpp
#endif

namespace {

using Address = std::uintptr_t;

template <class T = float>
const T* in(Address a) {
    return reinterpret_cast<const T*>(a);
}
template <class T = float>
T* out(Address a) {
    return reinterpret_cast<T*>(a);
}

// Calls run with a value of the element type; the numbers are those of ops/elements.py.
template <class Run>
void with_element(int element, Run run) {
    switch (element) {
        case 0: return run(float{});
        case 1: return run(cd::bf16{});
        case 2: return run(cd::fp16{});
    }
    throw py::value_error("element must be 0 (fp32), 1 (bf16) or 2 (fp16)");
}
#define CD_T decltype(zero)

void adaln_forward(int element, int64_t groups, int64_t rows, int64_t width, Address x, Address shift,
                   int64_t shift_stride, Address scale, int64_t scale_stride, float eps, Address result,
                   Address stats) {
    with_element(element, [&](auto zero) {
        cd::adaln_forward<CD_T>({groups, rows, width}, in<CD_T>(x), {in(shift), shift_stride},
                                {in(scale), scale_stride}, eps, out<CD_T>(result), out(stats));
    });
}

void adaln_backward(int element, int64_t groups, int64_t rows, int64_t width, Address grad, Address x,
                    Address stats, Address scale, int64_t scale_stride, Address dx, Address dshift,
                    Address dscale) {
    with_element(element, [&](auto zero) {
        cd::adaln_backward<CD_T>({groups, rows, width}, in<CD_T>(grad), in<CD_T>(x), in(stats),
                                 {in(scale), scale_stride}, out<CD_T>(dx), out(dshift), out(dscale));
    });
}

void gated_adaln_forward(int element, int64_t groups, int64_t rows, int64_t width, Address x, Address y,
                         Address gate, int64_t gate_stride, Address shift, int64_t shift_stride, Address scale,
                         int64_t scale_stride, float eps, Address x_new, Address result, Address stats) {
    with_element(element, [&](auto zero) {
        cd::gated_adaln_forward<CD_T>({groups, rows, width}, in<CD_T>(x), in<CD_T>(y), {in(gate), gate_stride},
                                      {in(shift), shift_stride}, {in(scale), scale_stride}, eps,
                                      out<CD_T>(x_new), out<CD_T>(result), out(stats));
    });
}

void gated_adaln_backward(int element, int64_t groups, int64_t rows, int64_t width, Address grad,
                          Address grad_x_new, Address x_new, Address y, Address stats, Address gate,
                          int64_t gate_stride, Address scale, int64_t scale_stride, Address dx, Address dy,
                          Address dgate, Address dshift, Address dscale) {
    with_element(element, [&](auto zero) {
        cd::gated_adaln_backward<CD_T>({groups, rows, width}, in<CD_T>(grad), in<CD_T>(grad_x_new),
                                       in<CD_T>(x_new), in<CD_T>(y), in(stats), {in(gate), gate_stride},
                                       {in(scale), scale_stride}, out<CD_T>(dx), out<CD_T>(dy), out(dgate),
                                       out(dshift), out(dscale));
    });
}

// `grid` is empty for full tables, or (frames, height, width, t, h, w).
cd::Tables tables(Address cos, Address sin, bool per_sample, const std::vector<int64_t>& grid) {
    if (grid.empty()) return {in(cos), in(sin), per_sample, 0, 0, 0, 0, 0, 0};
    return {in(cos), in(sin), per_sample, grid.at(0), grid.at(1), grid.at(2), grid.at(3), grid.at(4), grid.at(5)};
}

void norm_rope_forward(int element, int64_t batch, int64_t length, int64_t heads, int64_t head_dim,
                       int64_t stride, Address x, Address weight, Address cos, Address sin, bool per_sample,
                       const std::vector<int64_t>& grid, float eps, Address result, Address rstd) {
    with_element(element, [&](auto zero) {
        cd::norm_rope_forward<CD_T>({batch, length, heads, head_dim, stride}, in<CD_T>(x), in(weight),
                                    tables(cos, sin, per_sample, grid), eps, out<CD_T>(result), out(rstd));
    });
}

void norm_rope_backward(int element, int64_t batch, int64_t length, int64_t heads, int64_t head_dim,
                        int64_t stride, Address grad, Address x, Address rstd, Address weight, Address cos,
                        Address sin, bool per_sample, const std::vector<int64_t>& grid, Address dx,
                        Address dweight) {
    with_element(element, [&](auto zero) {
        cd::norm_rope_backward<CD_T>({batch, length, heads, head_dim, stride}, in<CD_T>(grad), in<CD_T>(x),
                                     in(rstd), in(weight), tables(cos, sin, per_sample, grid), out<CD_T>(dx),
                                     out(dweight));
    });
}

using Shape = std::array<int64_t, 4>;  // batch, segments, inner, frames

cd::Samples samples(const Shape& shape, Address mask) {
    return {shape[0], shape[1], shape[2], shape[3], in(mask)};
}

void renoise(int element, const Shape& shape, Address x0, Address eps, Address alpha, Address sigma,
             Address result) {
    with_element(element, [&](auto zero) {
        cd::renoise<CD_T>(samples(shape, 0), in<CD_T>(x0), in<CD_T>(eps), in(alpha), in(sigma), out(result));
    });
}

void vsd(int element, const Shape& shape, Address mask, Address x, Address teacher, Address fake, Address uncond,
         Address x_t, Address coefficients, float guidance, Address direction, Address sums) {
    with_element(element, [&](auto zero) {
        cd::vsd<CD_T>(samples(shape, mask), in<CD_T>(x), in<CD_T>(teacher), in<CD_T>(fake), in<CD_T>(uncond),
                      {in<CD_T>(x_t), in(coefficients)}, guidance, out<CD_T>(direction), out(sums));
    });
}

void vsd_gradient(int element, const Shape& shape, Address direction, Address slope, Address result) {
    with_element(element, [&](auto zero) {
        cd::vsd_gradient<CD_T>(samples(shape, 0), in<CD_T>(direction), in(slope), out<CD_T>(result));
    });
}

void squared_error(int element, const Shape& shape, Address mask, Address p, Address target, Address x_t,
                   Address coefficients, Address sums) {
    with_element(element, [&](auto zero) {
        cd::squared_error<CD_T>(samples(shape, mask), in<CD_T>(p), in<CD_T>(target),
                                {in<CD_T>(x_t), in(coefficients)}, out(sums));
    });
}

void squared_error_gradient(int element, const Shape& shape, Address mask, Address grad, Address p,
                            Address target, Address x_t, Address coefficients, Address result) {
    with_element(element, [&](auto zero) {
        cd::squared_error_gradient<CD_T>(samples(shape, mask), in(grad), in<CD_T>(p), in<CD_T>(target),
                                         {in<CD_T>(x_t), in(coefficients)}, out<CD_T>(result));
    });
}

// `groups`: addresses of the parameters, gradients, both moments, averages and, or empty, copies.
void adamw_ema(const std::array<std::vector<Address>, 6>& groups, const std::vector<int64_t>& sizes, float keep,
               float grad_rate, float beta2, float square_rate, float step_size, float inverse_root, float eps,
               float ema_rate) {
    std::vector<cd::Parameter> parameters;
    for (size_t i = 0; i < sizes.size(); i++) {
        parameters.push_back({out(groups[0].at(i)), in(groups[1].at(i)), out(groups[2].at(i)),
                              out(groups[3].at(i)), out(groups[4].at(i)),
                              groups[5].empty() ? nullptr : out<cd::bf16>(groups[5].at(i)), sizes[i]});
    }
    cd::adamw_ema(parameters, {keep, grad_rate, beta2, square_rate, step_size, inverse_root, eps, ema_rate});
}

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
    const auto release = py::call_guard<py::gil_scoped_release>();
    m.def("adaln_forward", &adaln_forward, release);
    m.def("adaln_backward", &adaln_backward, release);
    m.def("gated_adaln_forward", &gated_adaln_forward, release);
    m.def("gated_adaln_backward", &gated_adaln_backward, release);
    m.def("norm_rope_forward", &norm_rope_forward, release);
    m.def("norm_rope_backward", &norm_rope_backward, release);
    m.def("renoise", &renoise, release);
    m.def("vsd", &vsd, release);
    m.def("vsd_gradient", &vsd_gradient, release);
    m.def("squared_error", &squared_error, release);
    m.def("squared_error_gradient", &squared_error_gradient, release);
    m.def("adamw_ema", &adamw_ema, release);
    m.def("has_avx512_bf16", &has_avx512_bf16);
#if defined(COSMOS_DISTILL_CUDA)
    bind_cuda(m);
#endif
}
