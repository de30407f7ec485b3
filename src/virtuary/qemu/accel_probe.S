# A guest whose only work is to prove that an accelerator really runs guests: 64 KiB of firmware, given to QEMU with -bios;
# no kernel, no disk, no other firmware. Opening the device proves nothing: there are hosts where everything looks well and no
# guest ever gets past its first page fault. So this one goes where a kernel goes, and says a letter on port 0xE9 at each stage:
#   R real mode                                   U ring 3, interrupted by the timer, then a page fault
#   P protected mode                              F the page made present in the handler was read in ring 3
#   L long mode, paging on, an alias read back    C a system call from ring 3
#   I an interrupt of the PIT after HLT           S SSE2 arithmetic
#   A an interrupt of the local APIC timer
# At the end it writes 0x2A to port 0xF4 (isa-debug-exit), which makes QEMU exit with status 85. An unexpected exception
# prints '!' and exits with 33. A hang is for the caller's clock.
# Assembled to accel_probe.bin by `as accel_probe.S`, section .text; a test holds the two together.
	.set ROM, 0xFFFF0000
	.macro putc c
	mov $\c, %al
	out %al, $0xE9
	.endm
	.text
base:
	.code16
start16:
	cli
	cld
	putc 'R'
	lgdtl %cs:(gdtr - base)
	mov %cr0, %eax
	and $0x9FFFFFFF, %eax			# caching on
	or $1, %eax
	mov %eax, %cr0
	ljmpl $0x08, $(ROM + (prot - base))
	.code32
prot:
	mov $0x10, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov $0x7000, %esp
	putc 'P'
	# page tables: PML4 0x10000, PDPT 0x11000, 4 PDs 0x12000.. (2 MiB pages, 4 GiB, user accessible)
	mov $0x10000, %edi
	xor %eax, %eax
	mov $(6 * 1024), %ecx
	rep stosl
	movl $0x11007, 0x10000			# PML4[0] -> identity
	movl $0x11007, 0x10008			# PML4[1] -> the same memory at 512 GiB (alias)
	movl $0x12007, 0x11000
	movl $0x13007, 0x11008
	movl $0x14007, 0x11010
	movl $0x15007, 0x11018
	mov $0x12000, %edi
	mov $0x87, %eax
	mov $2048, %ecx
1:	mov %eax, (%edi)
	add $0x200000, %eax
	add $8, %edi
	loop 1b
	mov %cr4, %eax
	or $0x620, %eax				# PAE, OSFXSR, OSXMMEXCPT
	mov %eax, %cr4
	mov $0x10000, %eax
	mov %eax, %cr3
	mov $0xC0000080, %ecx			# EFER: LME, SCE
	rdmsr
	or $0x101, %eax
	wrmsr
	mov %cr0, %eax
	and $0xFFFFFFFB, %eax			# EM off
	or $0x80000002, %eax			# PG, MP
	mov %eax, %cr0
	ljmp $0x18, $(ROM + (long64 - base))
	.code64
long64:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $0x7000, %esp
	movabs $0x1122334455667788, %rax
	movabs $0x8000008000, %rbx
	mov %rax, (%rbx)			# write through the alias ...
	cmp %rax, 0x8000			# ... read through the identity map
	jne fail
	putc 'L'
	# GDT to RAM (ltr writes the busy bit), TSS at 0x8100, IDT at 0x9000
	lea gdt(%rip), %rsi
	mov $0x8200, %edi
	mov $(gdt_end - gdt), %ecx
	rep movsb
	movw $(gdt_end - gdt - 1), 0x8300
	movq $0x8200, 0x8302
	lgdt 0x8300
	mov $0x8100, %edi
	xor %eax, %eax
	mov $26, %ecx
	rep stosl
	movq $0x7800, 0x8104			# rsp0
	movw $104, 0x8166			# I/O map base beyond the limit
	mov $0x38, %eax
	ltr %ax
	mov $0x9000, %edi
	xor %ebx, %ebx
2:	lea fail(%rip), %rax
	call setgate
	inc %ebx
	cmp $256, %ebx
	jne 2b
	mov $0x20, %ebx
	lea pit(%rip), %rax
	call setgate
	mov $0x30, %ebx
	lea lapic(%rip), %rax
	call setgate
	mov $0x0E, %ebx
	lea pfault(%rip), %rax
	call setgate
	movw $4095, 0x8310
	movq $0x9000, 0x8312
	lidt 0x8310
	movq $0, 0x8400				# PIT ticks
	movq $0, 0x8408				# LAPIC ticks
	# local APIC on, LINT0 = ExtINT; both PICs to 0x20/0x28, only IRQ0 open; PIT 100 Hz
	mov $0xFEE00000, %ebp
	movl $0x1FF, 0xF0(%rbp)
	movl $0x700, 0x350(%rbp)
	lea picseq(%rip), %rsi
	mov $13, %ecx
3:	movzbl (%rsi), %edx
	mov 1(%rsi), %al
	out %al, %dx
	add $2, %rsi
	loop 3b
	sti
4:	hlt
	cmpq $3, 0x8400
	jb 4b
	putc 'I'
	movl $0xB, 0x3E0(%rbp)			# divide by 1
	movl $0x30, 0x320(%rbp)			# one shot, vector 0x30
	movl $5000000, 0x380(%rbp)
5:	hlt
	cmpq $0, 0x8408
	je 5b
	putc 'A'
	# syscall target, then to ring 3
	lea sysent(%rip), %rax
	mov %rax, %rdx
	shr $32, %rdx
	mov $0xC0000082, %ecx			# LSTAR
	wrmsr
	mov $0xC0000081, %ecx			# STAR: kernel cs 0x18; user base 0x20
	mov $0x00200018, %edx
	xor %eax, %eax
	wrmsr
	mov $0xC0000084, %ecx			# FMASK: IF off in the handler
	mov $0x200, %eax
	xor %edx, %edx
	wrmsr
	mov 0x8400, %r12
	add $2, %r12
	pushq $0x2B				# user ss
	pushq $0x6800				# user rsp
	pushq $0x202				# IF on, IOPL 0: ring 3 may not print
	pushq $0x33				# user cs
	lea user(%rip), %rax
	push %rax
	iretq
user:
6:	pause
	cmp %r12, 0x8400
	jb 6b					# two timer interrupts arrive while in ring 3
	movabs $0x10000008000, %rbx		# PML4[2]: not mapped yet
	movabs $0x1122334455667788, %rax
	cmp %rax, (%rbx)
	jne fail				# (ring 3: ends in #GP -> fail)
	mov $0xC0DE, %edi
	syscall
sysent:
	putc 'F'				# the repaired page was read in ring 3
	cmp $0xC0DE, %edi
	jne fail
	mov %cs, %eax
	cmp $0x18, %eax
	jne fail
	putc 'C'
	movabs $0x0123456789ABCDEF, %rax
	movq %rax, %xmm0
	paddq %xmm0, %xmm0
	movq %xmm0, %rcx
	add %rax, %rax
	cmp %rax, %rcx
	jne fail
	putc 'S'
	mov $0x2A, %al
	out %al, $0xF4
	hlt
pfault:						# error code on the stack
	push %rax
	putc 'U'				# ring 3 ran and was interrupted twice
	mov %cr2, %rax
	shr $39, %rax
	cmp $2, %eax
	jne fail
	movq $0x11007, 0x10010			# PML4[2] -> identity
	pop %rax
	add $8, %rsp
	iretq
pit:
	push %rax
	incq 0x8400
	mov $0x20, %al
	out %al, $0x20
	pop %rax
	iretq
lapic:
	incq 0x8408
	push %rax
	mov $0xFEE000B0, %eax
	movl $0, (%rax)			# EOI
	pop %rax
	iretq
fail:
	putc '!'
	mov $0x10, %al
	out %al, $0xF4
	cli
	hlt
setgate:					# rax handler, ebx vector
	mov %ebx, %edi
	shl $4, %edi
	add $0x9000, %edi
	mov %ax, (%rdi)
	movw $0x18, 2(%rdi)
	movw $0x8E00, 4(%rdi)
	shr $16, %rax
	mov %ax, 6(%rdi)
	shr $16, %rax
	mov %eax, 8(%rdi)
	movl $0, 12(%rdi)
	ret
	.balign 8
gdt:	.quad 0
	.quad 0x00CF9B000000FFFF		# 08 code32
	.quad 0x00CF93000000FFFF		# 10 data
	.quad 0x00AF9B000000FFFF		# 18 code64   (syscall: cs 18, ss 20)
	.quad 0x00CF93000000FFFF		# 20 data
	.quad 0x00CFF3000000FFFF		# 28 user data
	.quad 0x00AFFB000000FFFF		# 30 user code64
	.quad 0x0000890081000067, 0		# 38 TSS at 0x8100
gdt_end:
gdtr:	.word gdt_end - gdt - 1
	.long ROM + (gdt - base)
picseq:	.byte 0x20,0x11, 0xA0,0x11, 0x21,0x20, 0xA1,0x28, 0x21,4, 0xA1,2, 0x21,1, 0xA1,1, 0x21,0xFE, 0xA1,0xFF
	.byte 0x43,0x34, 0x40,0x9C, 0x40,0x2E
	.org 0xFFF0, 0xF4
	.code16
	jmp start16
	.org 0x10000, 0xF4
