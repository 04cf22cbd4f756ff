"""Types of the compiled module (csrc/bindings.cpp). Tensors are passed as addresses; ``element`` numbers
the dtype of those that are not always fp32 (ops/elements.py)."""

def adaln_forward(
    element: int,
    groups: int,
    rows: int,
    width: int,
    x: int,
    shift: int,
    shift_stride: int,
    scale: int,
    scale_stride: int,
    eps: float,
    result: int,
    stats: int,
    /,
) -> None: ...
def adaln_backward(
    element: int,
    groups: int,
    rows: int,
    width: int,
    grad: int,
    x: int,
    stats: int,
    scale: int,
    scale_stride: int,
    dx: int,
    dshift: int,
    dscale: int,
    /,
) -> None: ...
def gated_adaln_forward(
    element: int,
    groups: int,
    rows: int,
    width: int,
    x: int,
    y: int,
    gate: int,
    gate_stride: int,
    shift: int,
    shift_stride: int,
    scale: int,
    scale_stride: int,
    eps: float,
    x_new: int,
    result: int,
    stats: int,
    /,
) -> None: ...
def gated_adaln_backward(
    element: int,
    groups: int,
    rows: int,
    width: int,
    grad: int,
    grad_x_new: int,
    x_new: int,
    y: int,
    stats: int,
    gate: int,
    gate_stride: int,
    scale: int,
    scale_stride: int,
    dx: int,
    dy: int,
    dgate: int,
    dshift: int,
    dscale: int,
    /,
) -> None: ...
def norm_rope_forward(
    element: int,
    batch: int,
    length: int,
    heads: int,
    head_dim: int,
    stride: int,
    x: int,
    weight: int,
    cos: int,
    sin: int,
    per_sample: bool,
    grid: list[int],
    eps: float,
    result: int,
    rstd: int,
    /,
) -> None: ...
def norm_rope_backward(
    element: int,
    batch: int,
    length: int,
    heads: int,
    head_dim: int,
    stride: int,
    grad: int,
    x: int,
    rstd: int,
    weight: int,
    cos: int,
    sin: int,
    per_sample: bool,
    grid: list[int],
    dx: int,
    dweight: int,
    /,
) -> None: ...
def renoise(
    element: int,
    shape: tuple[int, int, int, int],
    x0: int,
    eps: int,
    alpha: int,
    sigma: int,
    result: int,
    /,
) -> None: ...
def vsd(
    element: int,
    shape: tuple[int, int, int, int],
    mask: int,
    x: int,
    teacher: int,
    fake: int,
    uncond: int,
    x_t: int,
    coefficients: int,
    guidance: float,
    direction: int,
    sums: int,
    /,
) -> None: ...
def vsd_gradient(
    element: int,
    shape: tuple[int, int, int, int],
    direction: int,
    slope: int,
    result: int,
    /,
) -> None: ...
def squared_error(
    element: int,
    shape: tuple[int, int, int, int],
    mask: int,
    p: int,
    target: int,
    x_t: int,
    coefficients: int,
    sums: int,
    /,
) -> None: ...
def squared_error_gradient(
    element: int,
    shape: tuple[int, int, int, int],
    mask: int,
    grad: int,
    p: int,
    target: int,
    x_t: int,
    coefficients: int,
    result: int,
    /,
) -> None: ...

class cuda:
    """csrc/bindings_cuda.cpp, there only when built with CUDA. ``dtype``: 0 fp32, 1 bf16, 2 fp16;
    ``stream``: a cudaStream_t."""

    @staticmethod
    def adaln_chunks(groups: int, rows: int, /) -> int: ...
    @staticmethod
    def adaln_forward(
        dtype: int,
        groups: int,
        rows: int,
        width: int,
        x: int,
        y: int,
        gate: int,
        gate_stride: int,
        shift: int,
        shift_stride: int,
        scale: int,
        scale_stride: int,
        eps: float,
        x_new: int,
        result: int,
        stats: int,
        stream: int,
        /,
    ) -> None: ...
    @staticmethod
    def adaln_backward(
        dtype: int,
        groups: int,
        rows: int,
        width: int,
        grad: int,
        grad_x_new: int,
        x: int,
        y: int,
        stats: int,
        gate: int,
        gate_stride: int,
        scale: int,
        scale_stride: int,
        dx: int,
        dy: int,
        dgate: int,
        dshift: int,
        dscale: int,
        partial: int,
        stream: int,
        /,
    ) -> None: ...
    @staticmethod
    def latent_chunks(
        shape: tuple[int, int, int, int],
        /,
    ) -> int: ...
    @staticmethod
    def renoise(
        dtype: int,
        shape: tuple[int, int, int, int],
        x0: int,
        eps: int,
        alpha: int,
        sigma: int,
        x_t: int,
        stream: int,
        /,
    ) -> None: ...
    @staticmethod
    def vsd(
        dtype: int,
        shape: tuple[int, int, int, int],
        x: int,
        teacher: int,
        fake: int,
        uncond: int,
        guidance: float,
        reading: tuple[int, int, int],
        direction: int,
        sums: int,
        partial: int,
        stream: int,
        /,
    ) -> None: ...
    @staticmethod
    def vsd_gradient(
        dtype: int,
        shape: tuple[int, int, int, int],
        direction: int,
        slope: int,
        dx: int,
        stream: int,
        /,
    ) -> None: ...
    @staticmethod
    def squared_error(
        dtype: int,
        shape: tuple[int, int, int, int],
        p: int,
        target: int,
        reading: tuple[int, int, int],
        sums: int,
        partial: int,
        stream: int,
        /,
    ) -> None: ...
    @staticmethod
    def squared_error_gradient(
        dtype: int,
        shape: tuple[int, int, int, int],
        grad: int,
        p: int,
        target: int,
        reading: tuple[int, int, int],
        dp: int,
        stream: int,
        /,
    ) -> None: ...
    @staticmethod
    def norm_rope_chunks(
        shape: tuple[int, int, int, int, int],
        /,
    ) -> int: ...
    @staticmethod
    def norm_rope_forward(
        dtype: int,
        shape: tuple[int, int, int, int, int],
        x: int,
        weight: int,
        cos: int,
        sin: int,
        per_sample: bool,
        grid: list[int],
        eps: float,
        result: int,
        rstd: int,
        stream: int,
        /,
    ) -> None: ...
    @staticmethod
    def norm_rope_backward(
        dtype: int,
        shape: tuple[int, int, int, int, int],
        grad: int,
        x: int,
        rstd: int,
        weight: int,
        cos: int,
        sin: int,
        per_sample: bool,
        grid: list[int],
        dx: int,
        dweight: int,
        partial: int,
        stream: int,
        /,
    ) -> None: ...
