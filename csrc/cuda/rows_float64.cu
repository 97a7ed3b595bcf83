#include "launch_rows.cuh"

template cudaError_t labelsmooth::cuda::launch_rows<double>(const LossProblem&, const Plan&,
                                                            const Prepared&, cudaStream_t);
template bool labelsmooth::cuda::can_run<double>(const LossProblem&, const Plan&);
