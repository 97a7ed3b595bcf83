cpu_instruction_set: str
cuda_architectures: str
