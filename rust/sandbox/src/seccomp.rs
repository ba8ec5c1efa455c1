//! The tables of `calls`, compiled (purely) into a classic BPF program.
//!
//! What is allowed by no group (newer calls, x32, clone3, whose flags are in memory, where a filter cannot look) is
//! answered by ENOSYS, what is dangerous by EPERM, and a call by another architecture's convention ends the process.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small constants of the kernel, whose types differ between its headers"
)]

use crate::calls::{ALLOWED, ALLOWED_HERE, ALLOWED_NUMBERS, DENIED, DENIED_HERE, Group, PRETENDED};
use crate::syscall::Instruction;

/// Largest system call number that the tables were made for (`mseal`); the same on all modern architectures.
const LAST_KNOWN: u32 = 462;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// `CLONE_NEW*` flags of clone's first argument, `CLONE_NEWTIME` included.
const NAMESPACE_FLAGS: u32 = 0x7E02_0080;
/// ioctl requests that push input into or reprogram a terminal.
const DENIED_IOCTLS: &[u32] = &[
    0x5412, /* TIOCSTI */
    0x541C, /* TIOCLINUX */
    0x541D, /* TIOCCONS */
    0x5423, /* TIOCSETD */
];
/// Socket families a job may use: unix, inet, inet6, netlink (others such as vsock know no network namespace).
const ALLOWED_FAMILIES: &[u32] = &[1, 2, 10, 16];
/// personality values that change no protection: Linux, query.
const ALLOWED_PERSONALITIES: &[u32] = &[0, 0xFFFF_FFFF];

const RETURN_ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const RETURN_KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const fn return_errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
/// Low 32 bits of argument `index` on a little-endian machine: the kernel looks at no more of them either.
const fn offset_argument(index: u32) -> u32 {
    16 + 8 * index
}

/// What happens to one range of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Return(u32),
    /// Refused with EPERM when the argument has one of the bits.
    UnlessBits {
        argument: u32,
        bits: u32,
    },
    /// Refused with the errno when the argument is one of the values.
    Unless {
        argument: u32,
        values: &'static [u32],
        errno: i32,
    },
    /// Refused with the errno when the argument is none of the values.
    OnlyIf {
        argument: u32,
        values: &'static [u32],
        errno: i32,
    },
}

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

impl Verdict {
    fn emit(self, program: &mut Vec<Instruction>) {
        match self {
            Self::Return(action) => program.push(instruction(RETURN, 0, 0, action)),
            Self::UnlessBits { argument, bits } => program.extend([
                instruction(LOAD, 0, 0, offset_argument(argument)),
                instruction(JUMP_ANY_BIT, 0, 1, bits),
                instruction(RETURN, 0, 0, return_errno(libc::EPERM)),
                instruction(RETURN, 0, 0, RETURN_ALLOW),
            ]),
            Self::Unless {
                argument,
                values,
                errno,
            } => {
                emit_choice(program, argument, values, return_errno(errno), RETURN_ALLOW);
            }
            Self::OnlyIf {
                argument,
                values,
                errno,
            } => {
                emit_choice(program, argument, values, RETURN_ALLOW, return_errno(errno));
            }
        }
    }
}

fn emit_choice(program: &mut Vec<Instruction>, argument: u32, values: &[u32], listed: u32, otherwise: u32) {
    program.push(instruction(LOAD, 0, 0, offset_argument(argument)));
    for (index, value) in values.iter().enumerate() {
        let to_listed = u8::try_from(values.len() - index).unwrap_or(u8::MAX);
        program.push(instruction(JUMP_EQUAL, to_listed, 0, *value));
    }
    program.push(instruction(RETURN, 0, 0, otherwise));
    program.push(instruction(RETURN, 0, 0, listed));
}

fn verdict(number: u32) -> Verdict {
    let is = |call: libc::c_long| libc::c_long::from(number) == call;
    let listed = |groups: &[Group]| groups.iter().any(|group| group.calls.iter().any(|(_, call)| is(*call)));
    if listed(DENIED) || listed(DENIED_HERE) {
        Verdict::Return(return_errno(libc::EPERM))
    } else if listed(&[PRETENDED]) {
        Verdict::Return(return_errno(0))
    } else if !(listed(ALLOWED) || listed(ALLOWED_HERE) || ALLOWED_NUMBERS.iter().any(|call| is(*call))) {
        Verdict::Return(return_errno(libc::ENOSYS))
    } else if is(libc::SYS_clone) {
        Verdict::UnlessBits {
            argument: 0,
            bits: NAMESPACE_FLAGS,
        }
    } else if is(libc::SYS_ioctl) {
        Verdict::Unless {
            argument: 1,
            values: DENIED_IOCTLS,
            errno: libc::EPERM,
        }
    } else if is(libc::SYS_socket) || is(libc::SYS_socketpair) {
        Verdict::OnlyIf {
            argument: 0,
            values: ALLOWED_FAMILIES,
            errno: libc::EAFNOSUPPORT,
        }
    } else if is(libc::SYS_prlimit64) {
        // Of the process itself: the first process of the job runs as the same user.
        Verdict::OnlyIf {
            argument: 0,
            values: &[0],
            errno: libc::EPERM,
        }
    } else if is(libc::SYS_personality) {
        Verdict::OnlyIf {
            argument: 0,
            values: ALLOWED_PERSONALITIES,
            errno: libc::EPERM,
        }
    } else {
        Verdict::Return(RETURN_ALLOW)
    }
}

/// Runs of neighbouring numbers with the same verdict: (first number, verdict), the first run begins at 0.
fn runs() -> Vec<(u32, Verdict)> {
    let mut runs: Vec<(u32, Verdict)> = Vec::new();
    for number in 0..=LAST_KNOWN + 1 {
        let verdict = verdict(number);
        if runs.last().is_none_or(|(_, last)| *last != verdict) {
            runs.push((number, verdict));
        }
    }
    runs
}

/// A balanced tree of comparisons, so that a call costs few instructions.
fn emit_tree(program: &mut Vec<Instruction>, runs: &[(u32, Verdict)]) {
    if let [(_, verdict)] = runs {
        return verdict.emit(program);
    }
    let (low, high) = runs.split_at(runs.len() / 2);
    let mut low_program = Vec::new();
    emit_tree(&mut low_program, low);
    let skip = u32::try_from(low_program.len()).unwrap_or(u32::MAX);
    if let Ok(near) = u8::try_from(skip) {
        program.push(instruction(JUMP_AT_LEAST, near, 0, high[0].0));
    } else {
        program.push(instruction(JUMP_AT_LEAST, 0, 1, high[0].0));
        program.push(instruction((libc::BPF_JMP | libc::BPF_JA) as u16, 0, 0, skip));
    }
    program.append(&mut low_program);
    emit_tree(program, high);
}

/// Returns the filter for this architecture.
#[must_use]
pub fn compile() -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD, 0, 0, OFFSET_ARCHITECTURE),
        instruction(JUMP_EQUAL, 1, 0, ARCHITECTURE),
        instruction(RETURN, 0, 0, RETURN_KILL),
        instruction(LOAD, 0, 0, OFFSET_NUMBER),
    ];
    emit_tree(&mut program, &runs());
    program
}

/// Returns a filter that allows these calls, whatever their arguments, and answers all others by ENOSYS.
#[must_use]
pub fn compile_list(allowed: &[libc::c_long]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD, 0, 0, OFFSET_ARCHITECTURE),
        instruction(JUMP_EQUAL, 1, 0, ARCHITECTURE),
        instruction(RETURN, 0, 0, RETURN_KILL),
        instruction(LOAD, 0, 0, OFFSET_NUMBER),
    ];
    for call in allowed {
        program.push(instruction(JUMP_EQUAL, 0, 1, *call as u32));
        program.push(instruction(RETURN, 0, 0, RETURN_ALLOW));
    }
    program.push(instruction(RETURN, 0, 0, return_errno(libc::ENOSYS)));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::groups;

    /// Runs the program as the kernel would.
    fn evaluate(number: u32, architecture: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(architecture.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        for argument in arguments {
            data.extend(argument.to_le_bytes());
        }
        let (program, mut at, mut accumulator) = (compile(), 0usize, 0u32);
        loop {
            let step = program[at];
            at += 1;
            let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
            match step.code {
                LOAD => {
                    let k = step.k as usize;
                    accumulator = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
                }
                JUMP_EQUAL => at += jump(accumulator == step.k),
                JUMP_AT_LEAST => at += jump(accumulator >= step.k),
                JUMP_ANY_BIT => at += jump(accumulator & step.k != 0),
                RETURN => return step.k,
                code if code == (libc::BPF_JMP | libc::BPF_JA) as u16 => at += step.k as usize,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    fn call(number: libc::c_long, arguments: [u64; 6]) -> u32 {
        evaluate(u32::try_from(number).unwrap(), ARCHITECTURE, arguments)
    }

    #[test]
    fn every_number_gets_the_verdict_of_the_table() {
        for number in 0..2000 {
            let expected = match verdict(number) {
                Verdict::Return(action) => action,
                Verdict::UnlessBits { .. } | Verdict::Unless { .. } => RETURN_ALLOW,
                Verdict::OnlyIf { .. } => continue,
            };
            assert_eq!(evaluate(number, ARCHITECTURE, [0; 6]), expected, "system call {number}");
        }
    }

    #[test]
    fn no_call_is_in_two_groups_and_none_beyond_the_tables() {
        let mut seen = std::collections::BTreeMap::new();
        for (_, group) in groups() {
            for &(name, number) in group.calls {
                assert!(u32::try_from(number).unwrap() <= LAST_KNOWN, "{name}");
                assert_eq!(seen.insert(number, name), None, "{name}");
            }
        }
        for number in ALLOWED_NUMBERS {
            assert_eq!(seen.insert(*number, ""), None);
        }
    }

    #[test]
    fn what_is_in_no_group_is_unknown_to_a_job() {
        for number in [435, 457, 458, 459, 460, 461, 463] {
            assert_eq!(call(number, [0; 6]), return_errno(libc::ENOSYS), "{number}");
        }
        #[cfg(target_arch = "x86_64")]
        for number in [174, 177, 178, 181, 182, 183, 184, 185, 214, 215, 236, 139] {
            assert_eq!(call(number, [0; 6]), return_errno(libc::ENOSYS), "{number}");
        }
        assert_eq!(call(libc::SYS_sync, [0; 6]), return_errno(0));
    }

    #[test]
    fn another_architecture_and_x32_get_nowhere() {
        assert_eq!(evaluate(0, 0x4000_0003, [0; 6]), RETURN_KILL);
        assert_eq!(evaluate(0x4000_0000, ARCHITECTURE, [0; 6]), return_errno(libc::ENOSYS));
        assert_eq!(evaluate(u32::MAX, ARCHITECTURE, [0; 6]), return_errno(libc::ENOSYS));
    }

    #[test]
    fn high_bits_of_an_ioctl_hide_nothing() {
        for request in [0x5412u64, 0x1_0000_5412, 0xFFFF_FFFF_0000_541C] {
            assert_eq!(
                call(libc::SYS_ioctl, [0, request, 0, 0, 0, 0]),
                return_errno(libc::EPERM)
            );
        }
        assert_eq!(call(libc::SYS_ioctl, [0, 0x5401, 0, 0, 0, 0]), RETURN_ALLOW);
    }

    #[test]
    fn clone_makes_processes_and_threads_but_no_namespace() {
        assert_eq!(call(libc::SYS_clone, [0x003d_0f00, 0, 0, 0, 0, 0]), RETURN_ALLOW);
        for bit in [7, 17, 25, 26, 27, 28, 29, 30] {
            assert_eq!(
                call(libc::SYS_clone, [1 << bit | 0x11, 0, 0, 0, 0, 0]),
                return_errno(libc::EPERM),
                "bit {bit}"
            );
        }
        assert_eq!(call(libc::SYS_clone3, [0; 6]), return_errno(libc::ENOSYS));
    }

    #[test]
    fn limits_are_the_caller_s_own() {
        assert_eq!(call(libc::SYS_prlimit64, [0, 7, 0, 0, 0, 0]), RETURN_ALLOW);
        assert_eq!(call(libc::SYS_prlimit64, [1, 7, 0, 0, 0, 0]), return_errno(libc::EPERM));
    }

    #[test]
    fn only_ordinary_socket_families_are_there() {
        assert_eq!(call(libc::SYS_socket, [2, 1, 0, 0, 0, 0]), RETURN_ALLOW);
        for family in [17, 38, 40] {
            assert_eq!(
                call(libc::SYS_socket, [family, 1, 0, 0, 0, 0]),
                return_errno(libc::EAFNOSUPPORT)
            );
        }
    }

    #[test]
    fn the_program_is_short_enough_for_the_kernel() {
        assert!(compile().len() < 4096);
    }
}
