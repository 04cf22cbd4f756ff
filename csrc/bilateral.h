// The bilateral filter (Tomasi and Manduchi 1998) of 8-bit colours on CPU: every pixel becomes the mean of those around it,
// which count less the farther away they are, and the farther their colour is. The result is the same, bit for bit, on
// every instruction set and whatever the number of threads.
#pragma once

#include "common/kernel.h"

namespace cd {

// A picture [height, width, 3] of bytes becomes `result`, another one, by means over the disc of `radius` pixels (borders
// are mirrored without being repeated), weighted by exp(-distance^2 / (2 space^2) - difference^2 / (2 color^2)). The
// difference of two pixels is the sum of those of their channels, as OpenCV has it.
void bilateral(const uint8_t* picture, int64_t height, int64_t width, int64_t radius, double color, double space,
               uint8_t* result);

}  // namespace cd
