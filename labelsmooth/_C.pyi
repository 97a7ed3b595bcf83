cpu_instruction_set: str
cuda_architectures: str  # that the CUDA kernels were built for; "" without them

def release_memory() -> None: ...
