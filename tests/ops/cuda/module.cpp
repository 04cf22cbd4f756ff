// The CUDA operators as a module of their own, for a build in which their kernels are emulated.
#include "bindings_cuda.cpp"
#include "device/launch.h"

PYBIND11_MODULE(emulated_operators, m) {
    bind_cuda(m);
    // (kernel, threads, bytes of dynamic shared memory) of each launch that `call` would make.
    m.attr("cuda").attr("record") = py::cpp_function([](const py::function& call) {
        std::vector<cd::emulator::Launch> launches;
        cd::emulator::recorded = &launches;
        try {
            call();
        } catch (...) {
            cd::emulator::recorded = nullptr;
            throw;
        }
        cd::emulator::recorded = nullptr;
        py::list found;
        for (const auto& one : launches) found.append(py::make_tuple(one.kernel, one.threads, one.shared));
        return found;
    });
}
