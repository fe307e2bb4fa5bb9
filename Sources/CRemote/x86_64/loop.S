#if defined(__x86_64__)
// rbx: first record, r12: one past the last. Each record is struct clinux_call (80 bytes).
    .section .rodata
    .globl brumate_loop_start, brumate_loop_end
brumate_loop_start:
1:  mov (%rbx), %rax
    mov 8(%rbx), %rdi
    mov 16(%rbx), %rsi
    mov 24(%rbx), %rdx
    mov 32(%rbx), %r10
    mov 40(%rbx), %r8
    mov 48(%rbx), %r9
    syscall
    mov %rax, 56(%rbx)
    mov 64(%rbx), %rcx          // forward the result into a later record
    jrcxz 2f
    mov %rax, (%rcx)
2:  cmp $-4095, %rax
    jb 3f
    testb $1, 72(%rbx)          // an error here ends the batch
    jnz 4f
3:  add $80, %rbx
    cmp %r12, %rbx
    jb 1b
4:  int3
brumate_loop_end:
    .section .note.GNU-stack, "", @progbits
#endif
