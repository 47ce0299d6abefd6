"""A model of instruction issue and latency: what a compiled kernel would take, without a GPU.

The byte model says what a kernel has to move, the issue model what it has to execute. It takes
machine code with the geometry of its launch and plays the warps of a quarter of a multiprocessor,
cycle by cycle: stall counts and scoreboards as the assembler wrote them, pipes, occupancy,
latencies, a share of the memory's bandwidth. Every number of it is **modelled, not measured**.
Eight parameters are fitted to kernels that were timed on GPUs; how far off it is, kernel by kernel,
is in docs/issue_model.md.

    sass       machine code as the disassembler prints it: instructions, loops, source lines
    source     what a source line of a kernel means: the tensor a load reads, the turns of a loop
    machine    the chip: its units, their speeds and latencies
    lanes      integers of a warp's lanes, as far as they are known
    arithmetic what single instructions do to them
    flow       what registers hold at each access of shared memory
    banks      the wavefronts of these accesses
    simulate   the cycles of one multiprocessor
    counts     how often machine code runs, counted in the same kernel's PTX
    cuda       the launches of the CUDA backend
    launches   the launches of one forward and one backward call, compiled for a chip
    table      a call's launches, modelled, and the floor beside them
    hazards    matrix products in flight where the memory that they read is filled again
    fit        the machine's parameters from kernels that were timed, and what is left
"""
