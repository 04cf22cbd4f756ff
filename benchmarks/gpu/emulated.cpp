// The CUDA operators as a module of their own, for a build in which their kernels are emulated.
#include "bindings.h"
#include "device/launch.h"

namespace py = pybind11;
using cd::emulator::Launch;

PYBIND11_MODULE(emulated_operators, m) {
    cd::bind_operators(m);
    const py::object cuda = m.attr("cuda");
    // Local, for there is a build that counts accesses beside the plain one.
    py::class_<Launch>(cuda, "Launch", py::module_local())
        .def_readonly("kernel", &Launch::kernel, "Its name, with the template arguments.")
        .def_property_readonly("grid", [](const Launch& l) { return py::make_tuple(l.grid.x, l.grid.y, l.grid.z); })
        .def_readonly("threads", &Launch::threads, "Of each block.")
        .def_readonly("shared", &Launch::shared, "Bytes of dynamic shared memory of each block.")
        .def_readonly("words", &Launch::words, "The bytes of the arguments, eight at a time.")
        .def("run", &cd::emulator::run, "What was written down; its tensors must still be there.");
    // The launches that `call` would make, written down instead.
    cuda.attr("record") = py::cpp_function([](const py::function& call) {
        std::vector<Launch> launches;
        cd::emulator::recorded = &launches;
        try {
            call();
        } catch (...) {
            cd::emulator::recorded = nullptr;
            throw;
        }
        cd::emulator::recorded = nullptr;
        return launches;
    });
}
