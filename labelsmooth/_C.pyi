cpu_instruction_set: str
