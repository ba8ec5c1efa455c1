//! What to do where, as text (pure).

use std::time::Duration;

use rustix::io::Errno;

use crate::points::POINTS;

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The process ends by SIGKILL.
    Kill,
    /// The operation fails with this number of errno.
    Error(i32),
    /// It takes that much longer; the thread waits.
    Delay(Duration),
}

/// An action at a pass of a point, and perhaps at all later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub point: usize,
    pub action: Action,
    pub pass: u64,
    pub and_later: bool,
}

/// Everything that is armed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub rules: Vec<Rule>,
    /// File that is told of points passed for the first time, and of actions.
    pub report: Option<String>,
}

pub(crate) fn parse(text: &str) -> Result<Plan, String> {
    let mut plan = Plan::default();
    for part in text.split(';').filter(|part| !part.is_empty()) {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is not NAME=ACTION"))?;
        if name == "report" {
            plan.report = Some(value.to_owned());
            continue;
        }
        let rule = parse_rule(name, value)?;
        if plan.rules.iter().any(|other| other.point == rule.point) {
            return Err(format!("{name} is armed twice"));
        }
        plan.rules.push(rule);
    }
    Ok(plan)
}

fn parse_rule(name: &str, value: &str) -> Result<Rule, String> {
    let point = POINTS.iter().position(|(known, _)| *known == name);
    let point = point.ok_or_else(|| format!("no failpoint is named {name}"))?;
    let (action, pass) = value.split_once('@').unwrap_or((value, "1"));
    let (pass, and_later) = pass.strip_suffix('+').map_or((pass, false), |pass| (pass, true));
    let pass = pass.parse().ok().filter(|pass| *pass > 0);
    let pass = pass.ok_or_else(|| format!("{name}: a pass is a number from 1 on"))?;
    let action = parse_action(action)
        .ok_or_else(|| format!("{name}: {action:?} is none of kill, error:EIO, error:ENOSPC, and delay:NUMBERms"))?;
    if matches!(action, Action::Error(_)) && !POINTS[point].1 {
        return Err(format!("{name}: nothing can fail there; kill and delay work"));
    }
    Ok(Rule {
        point,
        action,
        pass,
        and_later,
    })
}

fn parse_action(text: &str) -> Option<Action> {
    match text.split_once(':') {
        None if text == "kill" => Some(Action::Kill),
        Some(("error", "EIO")) => Some(Action::Error(Errno::IO.raw_os_error())),
        Some(("error", "ENOSPC")) => Some(Action::Error(Errno::NOSPC.raw_os_error())),
        Some(("delay", time)) => {
            let time_ms = time.strip_suffix("ms")?.parse().ok()?;
            Some(Action::Delay(Duration::from_millis(time_ms)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read() {
        let plan =
            parse("report=/tmp/r;log.sync.after=error:EIO;store.apply.before=kill@3;log.write.before=delay:20ms@2+");
        let plan = plan.unwrap();
        assert_eq!(plan.report.as_deref(), Some("/tmp/r"));
        let told: Vec<_> = plan
            .rules
            .iter()
            .map(|rule| (POINTS[rule.point].0, rule.action, rule.pass, rule.and_later))
            .collect();
        let delay = Action::Delay(Duration::from_millis(20));
        assert_eq!(
            told,
            [
                ("log.sync.after", Action::Error(5), 1, false),
                ("store.apply.before", Action::Kill, 3, false),
                ("log.write.before", delay, 2, true),
            ]
        );
        assert_eq!(parse(""), Ok(Plan::default()));
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_its_name() {
        for (text, told) in [
            ("log.sync.after", "is not NAME=ACTION"),
            ("log.sync.atfer=kill", "no failpoint is named log.sync.atfer"),
            ("log.sync.after=explode", "is none of kill"),
            ("log.sync.after=error:EWHAT", "is none of kill"),
            ("log.sync.after=delay:20", "is none of kill"),
            ("log.sync.after=kill@0", "from 1 on"),
            ("log.sync.after=kill@x", "from 1 on"),
            ("log.sync.after=kill;log.sync.after=kill", "armed twice"),
            ("store.apply.commit.after=error:EIO", "nothing can fail there"),
        ] {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains(told), "{text}: {problem}");
        }
    }

    #[test]
    fn no_name_is_there_twice() {
        for (at, (name, _)) in POINTS.iter().enumerate() {
            assert!(POINTS[..at].iter().all(|(other, _)| other != name), "{name}");
        }
    }
}
