#include "launch_rows.cuh"

template cudaError_t labelsmooth::cuda::launch_rows<__half>(const LossProblem&, const Plan&,
                                                            const Prepared&, cudaStream_t);
template bool labelsmooth::cuda::can_run<__half>(const LossProblem&, const Plan&);
