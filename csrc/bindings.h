// The border to Python: with bindings.cpp, all that knows pybind11. Tensors cross it as addresses: the caller (one cpu.py
// or cuda.py per folder of operators) has checked shapes, dtypes and layouts and keeps the tensors alive.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/operator.h"

namespace cd {

inline Value value_of(pybind11::handle given) {
    PyObject* const object = given.ptr();
    if (PyFloat_Check(object)) return {Value::Kind::number, 0, PyFloat_AS_DOUBLE(object)};
    if (PyIndex_Check(object)) return {Value::Kind::integer, given.cast<int64_t>()};
    if (!PySequence_Check(object)) return {Value::Kind::number, 0, given.cast<double>()};
    const auto sequence = pybind11::reinterpret_borrow<pybind11::sequence>(given);
    if (sequence.size() > 0 && PySequence_Check(pybind11::object(sequence[0]).ptr())) {
        return {Value::Kind::lists, 0, 0.0, {}, given.cast<std::vector<std::vector<int64_t>>>()};
    }
    return {Value::Kind::list, 0, 0.0, given.cast<std::vector<int64_t>>()};
}

inline void bind(pybind11::module_& module, const Operator* one) {
    module.def(one->name, [one](const pybind11::args& given) {
        std::vector<Value> values;
        values.reserve(given.size());
        for (const pybind11::handle argument : given) values.push_back(value_of(argument));
        Arguments arguments(values);
        const pybind11::gil_scoped_release release;
        return one->call(arguments);
    });
}

// Every function that is linked to `module`, those for CUDA devices into its submodule `cuda`, there only with them.
inline void bind_operators(pybind11::module_& module) {
    for (const Operator* one = Operator::first; one != nullptr; one = one->next) {
        if (!one->cuda) {
            bind(module, one);
            continue;
        }
        if (!pybind11::hasattr(module, "cuda")) module.def_submodule("cuda", "Operators on CUDA devices.");
        pybind11::module_ cuda = module.attr("cuda");
        bind(cuda, one);
    }
}

}  // namespace cd
