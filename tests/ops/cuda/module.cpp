// The CUDA operators as a module of their own, for a build in which their kernels are emulated.
#include "bindings_cuda.cpp"

PYBIND11_MODULE(emulated_operators, m) { bind_cuda(m); }
