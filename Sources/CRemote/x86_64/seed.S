#if defined(__x86_64__)
// An ELF64 executable of one page at 4 MiB: headers, then five seconds of poll, then exit: if
// the controller dies before it has taken the seed over, the seed goes by itself.
    .section .rodata
    .globl brumate_seed_start, brumate_seed_end
brumate_seed_start:
    .byte 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0
    .short 2, 62                // ET_EXEC, EM_X86_64
    .long 1
    .quad 0x400078              // entry
    .quad 64, 0                 // program headers, no sections
    .long 0
    .short 64, 56, 1, 0, 0, 0
    .long 1, 5                  // PT_LOAD, readable and executable
    .quad 0, 0x400000, 0x400000, 0x1000, 0x1000, 0x1000
    mov $7, %eax                // poll(NULL, 0, 5000)
    xor %edi, %edi
    xor %esi, %esi
    mov $5000, %edx
    syscall
    mov $231, %eax              // exit_group(1)
    mov $1, %edi
    syscall
    .balign 4096, 0xcc
brumate_seed_end:
#endif
