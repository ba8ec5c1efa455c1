//! The tables of `calls`, compiled (purely) into classic BPF programs.
//!
//! There are two, as the kernel compiles each anew for whoever installs it, which takes a tenth of a millisecond for the
//! whole of the tables. The launcher installs them once, but for the few calls that it builds jobs' worlds with, and
//! what it starts inherits that; a job's own filter has those calls only. Of two answers the kernel takes the stricter.
//!
//! What is allowed by no group (newer calls, x32, clone3, whose flags are in memory, where a filter cannot look) is
//! answered by ENOSYS, what is dangerous by EPERM, and a call by another architecture's convention ends the process.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small constants of the kernel, whose types differ between its headers"
)]

use crate::calls::{
    ALLOWED, ALLOWED_HERE, ALLOWED_NUMBERS, BUILDING, CONDITIONS, Check, Condition, DENIED, DENIED_HERE, Group,
    OFFLINE, PRETENDED, Test,
};
use crate::syscall::Instruction;

/// Largest system call number that the tables were made for (`mseal`); the same on all modern architectures.
const LAST_KNOWN: u32 = 462;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

const RETURN_ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const RETURN_KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const fn return_errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
/// Low 32 bits of argument `index` on a little-endian machine: the kernel looks at no more of them either.
const fn offset_argument(index: u32) -> u32 {
    16 + 8 * index
}

impl Check {
    fn emit(self, program: &mut Vec<Instruction>) {
        let refused = instruction(RETURN, 0, 0, return_errno(self.errno));
        program.push(instruction(LOAD, 0, 0, offset_argument(self.argument)));
        match self.test {
            Test::NoBits(bits) => program.extend([instruction(JUMP_ANY_BIT, 0, 1, bits), refused]),
            Test::NoneOf(values) => {
                // To the refusal, which is behind the comparisons and a jump past it.
                emit_comparisons(program, values);
                program.extend([instruction(JUMP, 0, 0, 1), refused]);
            }
            Test::OneOf(values) => {
                emit_comparisons(program, values);
                program.push(refused);
            }
        }
    }
}

/// Jumps over one instruction behind the comparisons when the value is there.
fn emit_comparisons(program: &mut Vec<Instruction>, values: &[u32]) {
    for (index, value) in values.iter().enumerate() {
        let to_end = u8::try_from(values.len() - index).expect("the values are few");
        program.push(instruction(JUMP_EQUAL, to_end, 0, *value));
    }
}

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// What happens to one range of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Return(u32),
    Judged(Condition),
}

impl Verdict {
    fn emit(self, program: &mut Vec<Instruction>) {
        match self {
            Self::Return(action) => program.push(instruction(RETURN, 0, 0, action)),
            Self::Judged(Condition::If(checks)) => {
                for check in checks {
                    check.emit(program);
                }
                program.push(instruction(RETURN, 0, 0, RETURN_ALLOW));
            }
            Self::Judged(Condition::ByFirst(cases, errno)) => {
                program.push(instruction(LOAD, 0, 0, offset_argument(0)));
                for (value, checks) in cases {
                    let mut then = Vec::new();
                    Self::Judged(Condition::If(checks)).emit(&mut then);
                    let length = u8::try_from(then.len()).expect("the conditions are few");
                    program.push(instruction(JUMP_EQUAL, 0, length, *value));
                    program.append(&mut then);
                }
                program.push(instruction(RETURN, 0, 0, return_errno(errno)));
            }
        }
    }
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
    } else {
        let number = libc::c_long::from(number);
        let found = CONDITIONS.iter().find(|(calls, _)| calls.contains(&number));
        found.map_or(Verdict::Return(RETURN_ALLOW), |(_, condition)| {
            Verdict::Judged(*condition)
        })
    }
}

/// Whose filter it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The launcher's, which each job inherits: all but what worlds are built with.
    Launcher,
    /// A job's own: what worlds are built with.
    Job,
    /// That of a job without a network: what worlds are built with, and sockets of the internet.
    OfflineJob,
    /// Both of a job with a network in one, for other sandboxes.
    Whole,
}

impl Layer {
    fn verdict(self, number: u32) -> Verdict {
        let is = |call: &libc::c_long| *call == libc::c_long::from(number);
        if self == Self::OfflineJob && [libc::SYS_socket, libc::SYS_socketpair].iter().any(is) {
            Verdict::Judged(OFFLINE)
        } else if self == Self::Whole || BUILDING.iter().any(is) == (self != Self::Launcher) {
            verdict(number)
        } else {
            Verdict::Return(RETURN_ALLOW)
        }
    }
}

/// Runs of neighbouring numbers with the same verdict: (first number, verdict), the first run begins at 0.
fn runs(layer: Layer) -> Vec<(u32, Verdict)> {
    let mut runs: Vec<(u32, Verdict)> = Vec::new();
    for number in 0..=LAST_KNOWN + 1 {
        let verdict = layer.verdict(number);
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
        program.push(instruction(JUMP, 0, 0, skip));
    }
    program.append(&mut low_program);
    emit_tree(program, high);
}

/// Ends a process that calls by another architecture's convention, and loads the number of the call.
fn begin() -> Vec<Instruction> {
    vec![
        instruction(LOAD, 0, 0, OFFSET_ARCHITECTURE),
        instruction(JUMP_EQUAL, 1, 0, ARCHITECTURE),
        instruction(RETURN, 0, 0, RETURN_KILL),
        instruction(LOAD, 0, 0, OFFSET_NUMBER),
    ]
}

/// Returns the filter for this architecture.
#[must_use]
pub fn compile(layer: Layer) -> Vec<Instruction> {
    let mut program = begin();
    emit_tree(&mut program, &runs(layer));
    program
}

/// Returns the whole filter as the bytes of its instructions (`struct sock_filter`), as bubblewrap and others read it.
#[must_use]
pub fn to_bytes() -> Vec<u8> {
    let bytes = |step: Instruction| {
        let code = step.code.to_ne_bytes();
        code.into_iter().chain([step.jt, step.jf]).chain(step.k.to_ne_bytes())
    };
    compile(Layer::Whole).into_iter().flat_map(bytes).collect()
}

/// Returns a filter that allows these calls, whatever their arguments, and answers all others by ENOSYS.
#[must_use]
pub fn compile_list(allowed: &[libc::c_long]) -> Vec<Instruction> {
    let mut program = begin();
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

    fn programs() -> &'static [Vec<Instruction>; 4] {
        static PROGRAMS: std::sync::OnceLock<[Vec<Instruction>; 4]> = std::sync::OnceLock::new();
        PROGRAMS.get_or_init(|| [Layer::Launcher, Layer::Job, Layer::OfflineJob, Layer::Whole].map(compile))
    }

    /// What the kernel makes of the answers of the inherited filter and of the job's own: the action with the smallest
    /// number, taken as signed, and of two alike that of the filter that was installed last.
    fn both(own: Layer, number: u32, architecture: u32, arguments: [u64; 6]) -> u32 {
        let [inherited, own] = [Layer::Launcher, own].map(|layer| {
            let program = &programs()[layer as usize];
            run(program, number, architecture, arguments)
        });
        let action = |answer: u32| (answer & libc::SECCOMP_RET_ACTION_FULL).cast_signed();
        if action(own) <= action(inherited) {
            own
        } else {
            inherited
        }
    }

    fn evaluate(number: u32, architecture: u32, arguments: [u64; 6]) -> u32 {
        both(Layer::Job, number, architecture, arguments)
    }

    fn evaluate_offline(number: u32, architecture: u32, arguments: [u64; 6]) -> u32 {
        both(Layer::OfflineJob, number, architecture, arguments)
    }

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], number: u32, architecture: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(architecture.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        for argument in arguments {
            data.extend(argument.to_le_bytes());
        }
        let (mut at, mut accumulator) = (0usize, 0u32);
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
                JUMP => at += step.k as usize,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    fn call(number: libc::c_long, arguments: [u64; 6]) -> u32 {
        evaluate(u32::try_from(number).unwrap(), ARCHITECTURE, arguments)
    }

    /// What the verdict says of a call, without the program.
    fn expected(verdict: Verdict, arguments: [u64; 6]) -> u32 {
        let argument = |index: u32| arguments[index as usize] as u32;
        let checks = match verdict {
            Verdict::Return(action) => return action,
            Verdict::Judged(Condition::If(checks)) => checks,
            Verdict::Judged(Condition::ByFirst(cases, errno)) => {
                match cases.iter().find(|(value, _)| *value == argument(0)) {
                    Some((_, checks)) => checks,
                    None => return return_errno(errno),
                }
            }
        };
        let failing = checks.iter().find(|check| match check.test {
            Test::NoBits(bits) => argument(check.argument) & bits != 0,
            Test::NoneOf(values) => values.contains(&argument(check.argument)),
            Test::OneOf(values) => !values.contains(&argument(check.argument)),
        });
        failing.map_or(RETURN_ALLOW, |check| return_errno(check.errno))
    }

    #[test]
    fn every_number_gets_the_verdict_of_the_table() {
        for number in 0..2000 {
            for value in (0..64).chain([0x5412, 0x1_0000_5412, 0x4_0000, 0xFFFF_FFFF, u64::MAX]) {
                let arguments = [value & 31, value, value >> 1, value, value, value];
                let expected = expected(verdict(number), arguments);
                assert_eq!(
                    evaluate(number, ARCHITECTURE, arguments),
                    expected,
                    "system call {number} of {value:#x}"
                );
                let whole = run(&programs()[Layer::Whole as usize], number, ARCHITECTURE, arguments);
                assert_eq!(whole, expected, "system call {number} of {value:#x}");
                let is_socket = [libc::SYS_socket, libc::SYS_socketpair].contains(&number.into());
                if !is_socket {
                    assert_eq!(
                        evaluate_offline(number, ARCHITECTURE, arguments),
                        expected,
                        "system call {number}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_launcher_may_call_what_worlds_are_built_with_and_nothing_else_that_is_denied_to_jobs() {
        let inherited = &programs()[0];
        for number in 0..2000 {
            let answer = run(inherited, number, ARCHITECTURE, [0; 6]);
            if BUILDING.contains(&libc::c_long::from(number)) {
                assert_eq!(answer, RETURN_ALLOW, "system call {number}");
                assert_ne!(verdict(number), Verdict::Return(RETURN_ALLOW), "system call {number}");
                // Of what is denied only what makes namespaces and mounts: nothing that reads other processes, loads
                // programs into the kernel or changes the machine.
                let is_named = |group: &Group| group.calls.iter().any(|(_, call)| *call == number.into());
                let is_of_worlds = DENIED[..2].iter().any(is_named);
                let others = [libc::SYS_sethostname, libc::SYS_clone3].contains(&number.into());
                assert!(is_of_worlds || others, "system call {number}");
            } else {
                assert_eq!(answer, expected(verdict(number), [0; 6]), "system call {number}");
            }
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
        for request in [0x5412u64, 0x1_0000_5412, 0xFFFF_FFFF_0000_541C, 0x8940, 0x8982] {
            assert_eq!(
                call(libc::SYS_ioctl, [0, request, 0, 0, 0, 0]),
                return_errno(libc::EPERM)
            );
        }
        assert_eq!(call(libc::SYS_ioctl, [0, 0x5401, 0, 0, 0, 0]), RETURN_ALLOW);
    }

    #[test]
    fn what_a_process_may_ask_of_itself_is_listed() {
        for option in [1, 4, 15, 22, 36, 38, 0x5356_4d41] {
            assert_eq!(call(libc::SYS_prctl, [option, 0, 0, 0, 0, 0]), RETURN_ALLOW, "{option}");
        }
        for option in [0, 35, 62, 67, 78, 79, 1 << 20] {
            let answer = call(libc::SYS_prctl, [option, 0, 0, 0, 0, 0]);
            assert_eq!(answer, return_errno(libc::EINVAL), "{option}");
        }
    }

    #[test]
    fn pages_that_all_are_shown_stay_in_memory() {
        assert_eq!(call(libc::SYS_fadvise64, [3, 0, 0, 4, 0, 0]), return_errno(0));
        assert_eq!(call(libc::SYS_fadvise64, [3, 0, 0, 3, 0, 0]), RETURN_ALLOW);
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
    fn only_ordinary_socket_families_and_protocols_are_there() {
        for (family, kind, protocol) in [
            (1, 5, 0),
            (2, 1, 0),
            (2, 0x8_0802, 17),
            (10, 1, 6),
            (10, 3, 58),
            (16, 3, 0),
        ] {
            assert_eq!(
                call(libc::SYS_socket, [family, kind, protocol, 0, 0, 0]),
                RETURN_ALLOW,
                "{family}"
            );
        }
        for (family, kind, protocol, errno) in [
            (2, 1, 132, libc::EPROTONOSUPPORT),
            (2, 1, 262, libc::EPROTONOSUPPORT),
            (10, 2, 136, libc::EPROTONOSUPPORT),
            (2, 5, 0, libc::ESOCKTNOSUPPORT),
            (2, 0x8_0806, 0, libc::ESOCKTNOSUPPORT),
            (2, 10, 0, libc::ESOCKTNOSUPPORT),
            (10, 0x8_080a, 0, libc::ESOCKTNOSUPPORT),
            (16, 3, 12, libc::EPROTONOSUPPORT),
        ] {
            assert_eq!(
                call(libc::SYS_socket, [family, kind, protocol, 0, 0, 0]),
                return_errno(errno)
            );
        }
        for family in [17, 38, 40] {
            assert_eq!(
                call(libc::SYS_socket, [family, 1, 0, 0, 0, 0]),
                return_errno(libc::EAFNOSUPPORT)
            );
        }
    }

    #[test]
    fn a_job_without_a_network_has_no_socket_of_the_internet_s() {
        for number in [libc::SYS_socket, libc::SYS_socketpair] {
            let number = u32::try_from(number).unwrap();
            for family in 0..64 {
                let arguments = [family, 1, 0, 0, 0, 0];
                let otherwise = evaluate(number, ARCHITECTURE, arguments);
                let is_of_the_internet = [2, 10].contains(&family);
                let expected = if is_of_the_internet {
                    return_errno(libc::ENETUNREACH)
                } else {
                    otherwise
                };
                assert_eq!(
                    evaluate_offline(number, ARCHITECTURE, arguments),
                    expected,
                    "family {family}"
                );
            }
            // What the inherited filter refuses stays refused.
            let answer = evaluate_offline(number, ARCHITECTURE, [16, 3, 4, 0, 0, 0]);
            assert_eq!(answer, return_errno(libc::EPROTONOSUPPORT));
        }
    }

    #[test]
    fn nothing_is_changed_of_how_the_first_process_runs() {
        let refused = return_errno(libc::EPERM);
        for number in [
            libc::SYS_sched_setaffinity,
            libc::SYS_sched_setattr,
            libc::SYS_sched_setparam,
            libc::SYS_sched_setscheduler,
        ] {
            assert_eq!(call(number, [1, 0, 0, 0, 0, 0]), refused, "{number}");
            for other in [0, 2, 77] {
                assert_eq!(call(number, [other, 0, 0, 0, 0, 0]), RETURN_ALLOW, "{number}");
            }
        }
        for (number, process, user) in [(libc::SYS_setpriority, 0, 2), (libc::SYS_ioprio_set, 1, 3)] {
            assert_eq!(call(number, [process, 1, 0, 0, 0, 0]), refused);
            assert_eq!(call(number, [user, 0, 0, 0, 0, 0]), refused);
            assert_eq!(call(number, [process, 0, 0, 0, 0, 0]), RETURN_ALLOW);
            assert_eq!(call(number, [process, 7, 0, 0, 0, 0]), RETURN_ALLOW);
        }
    }

    #[test]
    fn huge_pages_and_out_of_band_data_are_refused_whatever_else_is_asked() {
        let refused = return_errno(libc::EPERM);
        assert_eq!(call(libc::SYS_mmap, [0, 4096, 3, 0x4_0022, 0, 0]), refused);
        assert_eq!(call(libc::SYS_mmap, [0, 4096, 3, 0x22, 0, 0]), RETURN_ALLOW);
        assert_eq!(call(libc::SYS_memfd_create, [0, 5, 0, 0, 0, 0]), refused);
        assert_eq!(call(libc::SYS_memfd_create, [0, 3, 0, 0, 0, 0]), RETURN_ALLOW);
        assert_eq!(call(libc::SYS_shmget, [0, 4096, 0o5600, 0, 0, 0]), refused);
        assert_eq!(call(libc::SYS_shmget, [0, 4096, 0o1600, 0, 0, 0]), RETURN_ALLOW);
        assert_eq!(
            call(libc::SYS_sendto, [3, 0, 1, 0x4001, 0, 0]),
            return_errno(libc::EOPNOTSUPP)
        );
        assert_eq!(
            call(libc::SYS_sendmsg, [3, 0, 0x4001, 0, 0, 0]),
            return_errno(libc::EOPNOTSUPP)
        );
        assert_eq!(call(libc::SYS_sendmsg, [3, 0, 0x4000, 0, 0, 0]), RETURN_ALLOW);
    }

    #[test]
    fn every_condition_is_of_a_call_that_is_allowed_and_each_call_has_one() {
        let mut seen = std::collections::BTreeSet::new();
        let allowed = |number| {
            groups().any(|(what, group)| what == "allowed" && group.calls.iter().any(|(_, call)| *call == number))
        };
        for number in CONDITIONS.iter().flat_map(|(calls, _)| calls.iter()) {
            assert!(seen.insert(*number), "{number}");
            assert!(allowed(*number), "{number}");
        }
    }

    #[test]
    fn the_programs_are_short_enough_for_the_kernel() {
        assert!(programs().iter().all(|program| program.len() < 4096));
    }
}
