// The border to Python of the CUDA operators, kept apart from bindings.cpp because it is only there where they
// are. Tensors cross it as addresses and the stream as a number: the caller (one cuda.py per operator) has
// checked shapes, dtypes and layouts and keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "cuda_operators.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using cd::cuda::Dtype;
using cd::cuda::Modulation;
using cd::cuda::Stream;

void* at(Address a) { return reinterpret_cast<void*>(a); }
float* floats(Address a) { return reinterpret_cast<float*>(a); }

void adaln_forward(int dtype, int64_t groups, int64_t rows, int64_t width, Address x, Address y, Address gate,
                   int64_t gate_stride, Address shift, int64_t shift_stride, Address scale, int64_t scale_stride, float eps,
                   Address x_new, Address result, Address stats, Address stream) {
    cd::cuda::adaln_forward(Dtype(dtype),
                            {{groups, rows, width},
                             at(x),
                             at(y),
                             {floats(gate), gate_stride},
                             {floats(shift), shift_stride},
                             {floats(scale), scale_stride},
                             eps,
                             at(x_new),
                             at(result),
                             floats(stats)},
                            at(stream));
}

void adaln_backward(int dtype, int64_t groups, int64_t rows, int64_t width, Address grad, Address grad_x_new, Address x,
                    Address y, Address stats, Address gate, int64_t gate_stride, Address scale, int64_t scale_stride,
                    Address dx, Address dy, Address dgate, Address dshift, Address dscale, Address partial, Address stream) {
    cd::cuda::adaln_backward(Dtype(dtype),
                             {{groups, rows, width},
                              at(grad),
                              at(grad_x_new),
                              at(x),
                              at(y),
                              floats(stats),
                              {floats(gate), gate_stride},
                              {floats(scale), scale_stride},
                              at(dx),
                              at(dy),
                              floats(dgate),
                              floats(dshift),
                              floats(dscale),
                              floats(partial)},
                             at(stream));
}

// `grid` is empty for full tables, or (frames, height, width, t, h, w).
cd::cuda::Tables tables(Address cos, Address sin, bool per_sample, const std::vector<int>& grid) {
    if (grid.empty()) return {floats(cos), floats(sin), per_sample, 0, 0, 0, 0, 0, 0};
    return {floats(cos), floats(sin), per_sample, grid.at(0), grid.at(1), grid.at(2), grid.at(3), grid.at(4), grid.at(5)};
}

using Numbers = std::vector<int64_t>;

// A side is (tokens, heads, stride, x, weight, out, rstd).
cd::cuda::HeadsForward forward_side(const Numbers& n) {
    return {n.at(0), n.at(1), n.at(2), at(n.at(3)), floats(n.at(4)), at(n.at(5)), floats(n.at(6))};
}

// A side is (tokens, heads, stride, grad, x, weight, rstd, dx, dweight, partial).
cd::cuda::HeadsBackward backward_side(const Numbers& n) {
    return {n.at(0),         n.at(1),         n.at(2),    at(n.at(3)),     at(n.at(4)),
            floats(n.at(5)), floats(n.at(6)), at(n.at(7)), floats(n.at(8)), floats(n.at(9))};
}

void norm_rope_forward(int dtype, int64_t length, int64_t head_dim, Address cos, Address sin, bool per_sample,
                       const std::vector<int>& grid, float eps, const Numbers& q, const Numbers& k, Address stream) {
    const cd::cuda::NormRope call{
        length, head_dim, tables(cos, sin, per_sample, grid), eps, {forward_side(q), forward_side(k)}, {}};
    cd::cuda::norm_rope_forward(Dtype(dtype), call, at(stream));
}

void norm_rope_backward(int dtype, int64_t length, int64_t head_dim, Address cos, Address sin, bool per_sample,
                        const std::vector<int>& grid, const Numbers& q, const Numbers& k, Address stream) {
    const cd::cuda::NormRope call{
        length, head_dim, tables(cos, sin, per_sample, grid), 0.0f, {}, {backward_side(q), backward_side(k)}};
    cd::cuda::norm_rope_backward(Dtype(dtype), call, at(stream));
}

void renoise(int dtype, int64_t batch, int64_t elements, Address x0, Address eps, Address alpha, Address sigma,
             Address result, Address stream) {
    cd::cuda::renoise(Dtype(dtype), {batch, elements, at(x0), at(eps), floats(alpha), floats(sigma), floats(result)},
                      at(stream));
}

void vsd(int dtype, int64_t batch, int64_t elements, Address x, Address teacher, Address fake, Address uncond, Address x_t,
         float guidance, Address coefficients, Address mask, int64_t frames, int64_t area, Address direction, Address sums,
         Address partial, Address stream) {
    cd::cuda::vsd(Dtype(dtype),
                  {batch,
                   elements,
                   at(x),
                   at(teacher),
                   at(fake),
                   at(uncond),
                   at(x_t),
                   guidance,
                   floats(coefficients),
                   {floats(mask), frames, area},
                   at(direction),
                   floats(sums),
                   floats(partial)},
                  at(stream));
}

void vsd_gradient(int dtype, int64_t batch, int64_t elements, Address direction, Address slope, Address result,
                  Address stream) {
    cd::cuda::vsd_gradient(Dtype(dtype), batch, elements, at(direction), floats(slope), at(result), at(stream));
}

void squared_error(int dtype, int64_t batch, int64_t elements, Address p, Address target, Address x_t, Address coefficients,
                   Address mask, int64_t frames, int64_t area, Address grad, Address dp, Address sums, Address partial,
                   Address stream) {
    cd::cuda::squared_error(Dtype(dtype),
                            {batch,
                             elements,
                             at(p),
                             at(target),
                             at(x_t),
                             floats(coefficients),
                             {floats(mask), frames, area},
                             floats(grad),
                             at(dp),
                             floats(sums),
                             floats(partial)},
                            at(stream));
}

// A matrix is (address, and the distances between samples, rows and heads).
cd::cuda::Strided strided(const Numbers& n) { return {at(n.at(0)), n.at(1), n.at(2), n.at(3)}; }

// `sizes` are batch, heads, queries, keys and head size.
cd::cuda::Attention attention(const std::vector<int>& sizes, float scale, Address lse) {
    cd::cuda::Attention call{};
    call.batch = sizes.at(0);
    call.heads = sizes.at(1);
    call.queries = sizes.at(2);
    call.keys = sizes.at(3);
    call.dim = sizes.at(4);
    call.scale = scale;
    call.lse = floats(lse);
    return call;
}

void attention_forward(int dtype, const std::vector<int>& sizes, float scale, const Numbers& q, const Numbers& k,
                       const Numbers& v, const Numbers& result, Address lse, Address stream) {
    cd::cuda::Attention call = attention(sizes, scale, lse);
    call.q = strided(q);
    call.k = strided(k);
    call.v = strided(v);
    call.out = strided(result);
    cd::cuda::attention_forward(Dtype(dtype), call, at(stream));
}

void attention_backward(int dtype, const std::vector<int>& sizes, float scale, const Numbers& grad, Address grad_lse,
                        const Numbers& q, const Numbers& k, const Numbers& v, const Numbers& result, Address lse,
                        const Numbers& dq, const Numbers& dk, const Numbers& dv, Address scratch, Address stream) {
    cd::cuda::Attention call = attention(sizes, scale, lse);
    call.grad = strided(grad);
    call.grad_lse = floats(grad_lse);
    call.q = strided(q);
    call.k = strided(k);
    call.v = strided(v);
    call.out = strided(result);
    call.dq = strided(dq);
    call.dk = strided(dk);
    call.dv = strided(dv);
    call.scratch = floats(scratch);
    cd::cuda::attention_backward(Dtype(dtype), call, at(stream));
}

}  // namespace

// Adds the submodule `cuda`.
void bind_cuda(py::module_& module) {
    py::module_ m = module.def_submodule("cuda", "Operators on CUDA devices.");
    const auto release = py::call_guard<py::gil_scoped_release>();
    m.def("adaln_chunks", &cd::cuda::adaln_chunks);
    m.def("adaln_forward", &adaln_forward, release);
    m.def("adaln_backward", &adaln_backward, release);
    m.def("norm_rope_chunks", &cd::cuda::norm_rope_chunks);
    m.def("norm_rope_forward", &norm_rope_forward, release);
    m.def("norm_rope_backward", &norm_rope_backward, release);
    m.def("dm_loss_blocks", &cd::cuda::dm_loss_blocks);
    m.def("renoise", &renoise, release);
    m.def("vsd", &vsd, release);
    m.def("vsd_gradient", &vsd_gradient, release);
    m.def("squared_error", &squared_error, release);
    m.def("attention_padded", &cd::cuda::attention_padded);
    m.def("attention_forward", &attention_forward, release);
    m.def("attention_backward", &attention_backward, release);
}
