#if defined(__x86_64__)
// The server that a live task runs. It sits in the zero padding behind the vdso image, so it needs no mapping of its
// own, and it heals the task by itself if the controller dies: it then leaves the runway, restores the signal mask
// and every register, and jumps back to where the task was. FPU state and the kernel's restart block are never
// touched; that is why it calls neither rt_sigreturn nor a timed futex wait.
//
// The runway's first page is the control block:
//   0   command   0 idle, 1 run the records, 2 unmap the runway and wait to be taken over
//   4   done      futex word, set to 1 after the records
//   8   end       address one past the last record (8 bytes)
//   16  connected the controller holds the robust futex
//   20  inside    number of further threads that still use the runway
//   24  first     address of the first record (8 bytes)
//   32  go on     futex word that a batch may wait for
//   36  go on     another one
//   64  robust futex word of the controller
//   192 two struct futex_waitv: command, robust word
//   256 command, done, end and first of a further thread; 320 its two struct futex_waitv
//   4096 records and their data
    .section .rodata
    .globl brumate_server_start, brumate_server_thread, brumate_server_end
    .globl brumate_server_leader_state, brumate_server_thread_state

    .macro RUN
    mov 24(%r13), %rbp
1:  mov (%rbp), %rax
    mov %rax, %r12
    mov 8(%rbp), %rdi
    mov 16(%rbp), %rsi
    mov 24(%rbp), %rdx
    mov 32(%rbp), %r10
    mov 40(%rbp), %r8
    mov 48(%rbp), %r9
    syscall
    test %rax, %rax
    jnz 8f
    cmp $56, %r12               // clone
    je child
8:  mov %rax, 56(%rbp)
    mov 64(%rbp), %rcx
    jrcxz 2f
    mov %rax, (%rcx)
2:  cmp $-4095, %rax
    jb 3f
    testb $1, 72(%rbp)
    jnz 4f
3:  add $80, %rbp
    cmp 8(%r13), %rbp
    jb 1b
4:  movl $0, (%r13)
    movl $1, 4(%r13)
    mov $202, %eax              // futex(done, FUTEX_WAKE, 1)
    lea 4(%r13), %rdi
    mov $1, %esi
    mov $1, %edx
    syscall
    .endm

    .macro NAP
    mov $270, %eax              // pselect6 for 50 us
    xor %edi, %edi
    xor %esi, %esi
    xor %edx, %edx
    xor %r10d, %r10d
    lea nap(%rip), %r8
    xor %r9d, %r9d
    syscall
    .endm

    .macro WAIT offset
    mov $449, %eax              // futex_waitv: woken by the command or by the controller's death
    lea \offset(%rbx), %rdi
    mov $2, %esi
    xor %edx, %edx
    xor %r10d, %r10d
    xor %r8d, %r8d
    syscall
    .endm

    .macro TELL
    mov $202, %eax              // futex(robust word, FUTEX_WAKE, all): the kernel woke only one of those who wait
    lea 64(%rbx), %rdi
    mov $1, %esi
    mov $0x7fffffff, %edx
    syscall
    .endm

    .macro RESTORE state
    mov $14, %eax               // rt_sigprocmask(SIG_SETMASK)
    mov $2, %edi
    lea \state+16(%rip), %rsi
    xor %edx, %edx
    mov $8, %r10d
    syscall
    lea -128(%rsp), %rsp        // below the red zone
    pushq \state+24(%rip)
    popfq
    lea 128(%rsp), %rsp
    mov \state+40(%rip), %r15
    mov \state+48(%rip), %r14
    mov \state+56(%rip), %r13
    mov \state+64(%rip), %r12
    mov \state+72(%rip), %rbp
    mov \state+80(%rip), %rbx
    mov \state+88(%rip), %r11
    mov \state+96(%rip), %r10
    mov \state+104(%rip), %r9
    mov \state+112(%rip), %r8
    mov \state+120(%rip), %rax
    mov \state+128(%rip), %rcx
    mov \state+136(%rip), %rdx
    mov \state+144(%rip), %rsi
    mov \state+152(%rip), %rdi
    jmp *\state+32(%rip)
    .endm

brumate_server_start:
    mov $9, %eax                // mmap(runway, size, RW, SHARED | ANONYMOUS | FIXED_NOREPLACE)
    mov leader(%rip), %rdi
    mov leader+8(%rip), %rsi
    mov $3, %edx
    mov $0x100021, %r10d
    mov $-1, %r8
    xor %r9d, %r9d
    syscall
    cmp $-4095, %rax
    jae heal
    mov %rax, %rbx
    mov %rax, %r13
    mov $4000, %r15d            // two thousand glances, then two thousand naps
    xor %r14d, %r14d
wait:
    mov (%rbx), %eax
    cmp $1, %eax
    je run
    cmp $2, %eax
    je leave
    testl $0x40000000, 64(%rbx) // FUTEX_OWNER_DIED
    jnz orphaned
    cmpl $0, 16(%rbx)
    jne 1f
    dec %r15d                   // the controller never came
    jz unmap
    cmp $2000, %r15d
    jae 2f
    NAP
    jmp wait
1:  test %r15d, %r15d           // the next command often comes at once
    jz 3f
    dec %r15d
2:  pause
    jmp wait
3:  WAIT 192
    jmp wait
run:
    RUN
    mov $1500, %r15d
    jmp wait
orphaned:
    TELL
    mov $20000, %r15d
1:  cmpl $0, 20(%rbx)           // a further thread is on its way out
    je unmap
    NAP
    dec %r15d
    jnz 1b
unmap:
    mov $1, %r15d
    jmp 1f
leave:
    mov $2000, %r15d            // time for the controller to take over in a stop
1:  mov $11, %eax
    mov %rbx, %rdi
    mov leader+8(%rip), %rsi
    syscall
    inc %r14d                   // tells the controller that the runway is gone
1:  NAP
    dec %r15d
    jnz 1b
heal:
    RESTORE leader

brumate_server_thread:          // rbx: runway
    lea 256(%rbx), %r13
5:  mov (%r13), %eax
    cmp $1, %eax
    je 6f
    testl $0x40000000, 64(%rbx)
    jnz 7f
    WAIT 320
    jmp 5b
6:  RUN
    jmp 5b
7:  TELL
    lock decl 20(%rbx)
    RESTORE thread

// A child of the task, which shares its memory and stays only if the controller holds it: makes a child with a copy of the
// memory, and ends. That one lets go of all files, of group and session, and
// ends as well. A child that does not share the memory is such a copy itself.
child:
    test $0x100, %edi           // CLONE_VM
    jz 2f
    mov $56, %eax               // clone(CLONE_PTRACE | CLONE_FILES | CLONE_FS)
    mov $0x2600, %edi
    xor %esi, %esi
    xor %edx, %edx
    xor %r10d, %r10d
    xor %r8d, %r8d
    syscall
    test %rax, %rax
    jnz 1f
2:  mov $436, %eax              // close_range(0, all, CLOSE_RANGE_UNSHARE)
    xor %edi, %edi
    mov $-1, %esi
    mov $2, %edx
    syscall
    mov $112, %eax              // setsid: out of the program's process group and session
    syscall
1:  mov $231, %eax              // exit_group
    xor %edi, %edi
    syscall
    hlt
    .balign 8
nap:
    .quad 0, 50000
// Saved state: runway, size, signal mask, flags, ip, r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di
brumate_server_leader_state:
leader:
    .zero 160
brumate_server_thread_state:
thread:
    .zero 160
brumate_server_end:
    .section .note.GNU-stack, "", @progbits
#endif
