//! Failpoints: named places at which a test kills the process, or makes an operation fail or take long.
//!
//! Nothing is armed unless the environment of the process holds [`VARIABLE`], whose value says what happens where, such
//! as `report=/tmp/r;store.apply.before=kill@3;log.sync.after=error:EIO@1;log.write.before=error:ENOSPC@2+`. `@3` is the
//! third pass, which is the first one if nothing is said; `@2+` is each pass from the second on. Without it a pass
//! costs one relaxed read of memory.
#![forbid(unsafe_code)]

mod points;
mod spec;

use std::fs;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use points::POINTS;
pub use points::Point;
use spec::{Action, Plan, parse};

/// The variable without which nothing can be armed.
pub const VARIABLE: &str = "JOBS_FAILPOINTS";

static ARMED: AtomicBool = AtomicBool::new(false);
static ACTIVE: OnceLock<Active> = OnceLock::new();

/// A plan that is in force, with how often each point was passed.
struct Active {
    plan: Plan,
    passes: Vec<AtomicU64>,
    report: Option<fs::File>,
}

/// Pass a point whose operation can fail.
///
/// # Errors
/// What is armed there.
#[inline]
pub fn pass(point: Point) -> io::Result<()> {
    if ARMED.load(Ordering::Relaxed) {
        act(point as usize)
    } else {
        Ok(())
    }
}

/// Pass a point where only a kill or a delay can be armed.
#[inline]
pub fn reach(point: Point) {
    let _ = pass(point);
}

/// Whether anything is armed.
#[inline]
#[must_use]
pub fn is_armed() -> bool {
    ARMED.load(Ordering::Relaxed)
}

/// Pass a point by its name.
///
/// # Errors
/// What is armed there; `InvalidInput` for a name that is none.
pub fn pass_named(name: &str) -> io::Result<()> {
    if !is_armed() {
        return Ok(());
    }
    let found = POINTS.iter().position(|(known, _)| *known == name);
    act(found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("no failpoint is named {name}")))?)
}

/// Names of all points, and whether an error can be armed there.
#[must_use]
pub fn all() -> &'static [(&'static str, bool)] {
    POINTS
}

/// Arm what the environment says, once for the life of the process; returns it as it is written there.
///
/// # Errors
/// In words, when it cannot be understood, or when something is armed already.
pub fn arm_from_environment() -> Result<Option<String>, String> {
    let Some(value) = std::env::var_os(VARIABLE) else {
        return Ok(None);
    };
    let text = value.into_string().map_err(|_| format!("{VARIABLE} is not UTF-8"))?;
    let plan = parse(&text).map_err(|problem| format!("{VARIABLE}: {problem}"))?;
    let report = plan.report.as_ref().map(|path| {
        let opened = fs::File::options().create(true).append(true).open(path);
        opened.map_err(|error| format!("{VARIABLE}: report={path}: {error}"))
    });
    let active = Active {
        plan,
        passes: POINTS.iter().map(|_| AtomicU64::new(0)).collect(),
        report: report.transpose()?,
    };
    ACTIVE
        .set(active)
        .map_err(|_| format!("{VARIABLE} is in force already"))?;
    ARMED.store(true, Ordering::Release);
    Ok(Some(text))
}

#[cold]
fn act(point: usize) -> io::Result<()> {
    let Some(active) = ACTIVE.get() else { return Ok(()) };
    let pass = active.passes[point].fetch_add(1, Ordering::Relaxed) + 1;
    if pass == 1 {
        active.tell("passed", point);
    }
    let Some(rule) = active.plan.rules.iter().find(|rule| rule.point == point) else {
        return Ok(());
    };
    if !(pass == rule.pass || rule.and_later && pass > rule.pass) {
        return Ok(());
    }
    if pass == rule.pass {
        active.tell("fired", point);
    }
    match rule.action {
        Action::Kill => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // The signal is on its way; nothing more is done meanwhile.
            loop {
                thread::park();
            }
        }
        Action::Error(number) => Err(io::Error::from_raw_os_error(number)),
        Action::Delay(time) => {
            thread::sleep(time);
            Ok(())
        }
    }
}

impl Active {
    /// One write a line, so that lines of several threads and runs do not mix, and a kill right after loses none.
    fn tell(&self, what: &str, point: usize) {
        if let Some(mut report) = self.report.as_ref() {
            let _ = report.write_all(format!("{what} {}\n", POINTS[point].0).as_bytes());
        }
    }
}
