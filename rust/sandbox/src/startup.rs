//! The launcher's start: configuration, what the host has, the way into its own namespaces, and a rehearsal.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use rustix::io::read;
use rustix::process::umask;

use crate::cgroup::{Controllers, Subtree};
use crate::child::{Ended, Report, Shared};
use crate::error::{LauncherError, host, system};
use crate::host::{self as features, Feature};
use crate::identity::Ids;
use crate::netns::NetworkPool;
use crate::outcome::{Evidence, judge};
use crate::plan::{self, Means};
use crate::protocol::{Configure, Decoder, Level, PROTOCOL_VERSION, Request, Spawn};
use crate::root::Roots;
use crate::seccomp::{self, Layer};
use crate::spawn::{Basis, Mode, Spawner};
use crate::view::Inputs;
use crate::{bare, identity, inherited, syscall, view};

const READ_BYTES: usize = 64 << 10;
const MAX_SLOTS: u32 = 4096;
/// Network namespaces that lie ready.
const NETWORK_STOCK: u32 = 16;

/// What all jobs are started with.
pub struct Foundation {
    /// Starts them.
    pub spawner: Spawner,
    /// What may be used for them.
    pub means: Means,
    /// What the host has and lacks, in words.
    pub features: BTreeMap<&'static str, String>,
}

/// Waits for the first request; none when the worker goes before it.
///
/// # Errors
/// When it is anything but a configuration of this protocol.
pub fn await_configuration(control: &OwnedFd, decoder: &mut Decoder) -> Result<Option<Configure>, LauncherError> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match decoder.next()? {
            Some(Request::Configure(config)) if config.protocol == PROTOCOL_VERSION => return Ok(Some(config)),
            Some(Request::Configure(config)) => {
                let (ours, theirs) = (PROTOCOL_VERSION, config.protocol);
                return Err(host(format!("worker speaks protocol {theirs}, launcher {ours}")));
            }
            Some(_) => return Err(host("the first request is not `configure`")),
            None => {}
        }
        match read(control, buffer.as_mut_slice()).map_err(system("read the control socket"))? {
            0 => return Ok(None),
            count => decoder.feed(&buffer[..count]),
        }
    }
}

impl Foundation {
    /// Gives up the rights and the view of the host, makes what jobs need, and rehearses a start.
    ///
    /// # Errors
    /// When the host cannot give the configured level; names what is missing.
    pub fn lay(config: &Configure) -> Result<Self, LauncherError> {
        if config.slots == 0 || config.slots > MAX_SLOTS {
            return Err(host(format!("slots: {}, possible are 1 to {MAX_SLOTS}", config.slots)));
        }
        syscall::block_signals();
        umask(rustix::fs::Mode::from_raw_mode(0o022));
        inherited::give_up_precedence().map_err(|error| host(format!("precedence handed down: {error}")))?;
        inherited::use_all_descriptors().map_err(host)?;
        let features = features::probe(config.cgroup.as_deref());
        if config.level == Level::None {
            return Self::lay_bare(config, &features);
        }
        let level = features::level(&features);
        if level < config.level {
            return Err(host(missing(&features, config.level)));
        }
        let laid = enter_sandbox(config, &features)?;
        let (accepted, allow_host_network) = (config.level, config.allow_host_network);
        let means = Means {
            level,
            accepted,
            allow_host_network,
            cgroup: laid.controllers,
            has_inputs: config.inputs.is_some(),
            directories: None,
            roots: config.roots.keys().cloned().collect(),
            has_root_cache: config.root_cache.is_some(),
            has_layers: is_present(&features, "overlay"),
        };
        let mut foundation = Self {
            spawner: laid.spawner,
            means,
            features: features
                .iter()
                .map(Feature::words)
                .chain([("uids", laid.ids), ("inotify", laid.inotify)])
                .collect(),
        };
        foundation.rehearse()?;
        Ok(foundation)
    }

    /// The same for jobs without walls: what the host has for walls does not matter.
    fn lay_bare(config: &Configure, features: &[Feature]) -> Result<Self, LauncherError> {
        let cgroups = take_over_cgroup(config, None)?;
        let entered = bare::enter(config);
        let (identities, directories) = entered.map_err(host)?;
        inherited::share_limits(config.slots).map_err(host)?;
        let means = Means {
            level: Level::None,
            accepted: Level::None,
            allow_host_network: true,
            cgroup: cgroups.as_ref().map(Subtree::controllers),
            has_inputs: config.inputs.is_some(),
            directories: config.directories.clone(),
            roots: BTreeSet::new(),
            has_root_cache: false,
            has_layers: false,
        };
        let spawner = Spawner::new(Basis {
            identities,
            opens_kept: false,
            namespaces: 0,
            network: None,
            cgroups,
            shared: Shared::default(),
            directories: Some(directories),
            has_seccomp: false,
        });
        let uids = if identities.are_separate() {
            "a uid of its own for every job"
        } else {
            "missing: jobs have the worker's uid, and may do to it what they like"
        };
        let walls = "missing: level none is configured, jobs are ordinary processes of this host";
        let mut foundation = Self {
            spawner: spawner.map_err(host)?,
            means,
            features: features
                .iter()
                .filter(|feature| feature.name == "cgroup")
                .map(Feature::words)
                .chain([("isolation", walls.to_owned()), ("uids", uids.to_owned())])
                .collect(),
        };
        foundation.rehearse()?;
        Ok(foundation)
    }

    /// Sets up once all that a job gets, so that what this host refuses is known before the first job.
    fn rehearse(&mut self) -> Result<(), LauncherError> {
        let spawn = Spawn::rehearsal();
        let plan = plan::plan(&spawn, &self.means).map_err(|refusal| host(refusal.message))?;
        let process = self.spawner.spawn(&spawn, &plan, 0, Mode::Rehearse).map_err(host)?;
        let report = process.wait().map_err(system("wait for the rehearsal"))?;
        if let Some(Report::Ended(Ended { status: 0, .. })) = report {
            return Ok(());
        }
        let verdict = judge(&Evidence::of_report(report));
        Err(host(format!("sandbox: {}", verdict.message.unwrap_or_default())))
    }
}

/// What jobs are started with, and what is known of it only once it is there.
struct Laid {
    spawner: Spawner,
    controllers: Option<Controllers>,
    /// Whose uids jobs have, in words.
    ids: String,
    /// How much of inotify they have, in words.
    inotify: String,
}

fn enter_sandbox(config: &Configure, features: &[Feature]) -> Result<Laid, LauncherError> {
    let ids = Ids::choose(config).map_err(host)?;
    let cgroups = take_over_cgroup(config, ids.owner())?;
    let controllers = cgroups.as_ref().map(Subtree::controllers);
    let find = || {
        let inputs = config.inputs.as_deref().map(Inputs::find).transpose()?;
        Ok((inputs, Roots::find(&config.roots, config.root_cache.as_deref())?))
    };
    let entered = identity::enter(&ids, find).map_err(host)?;
    inherited::share_limits(config.slots).map_err(host)?;
    let inotify = inherited::bound_inotify(entered.identities, config.slots).map_or_else(
        |error| format!("missing: not bounded ({error}): a job can use up what the worker's user has"),
        |instances| format!("{instances} instances for {}", entered.identities.sharers()),
    );
    let (inputs, roots) = entered.done;
    let shared = Shared {
        inputs: inputs.is_some(),
        roots: !roots.trees.is_empty(),
    };
    view::enter(&config.read_only_paths, inputs, roots, config.allow_host_network).map_err(host)?;
    let has = |name: &str| is_present(features, name);
    if has("seccomp") {
        syscall::set_seccomp_filter(&seccomp::compile(Layer::Launcher)).map_err(system("seccomp filter"))?;
    }
    let stock = NETWORK_STOCK.min(config.slots.max(2));
    let network = has("network namespace").then(|| NetworkPool::start(stock)).transpose();
    let network = network.map_err(system("network namespaces"))?;
    let namespaces = features::job_namespaces(features);
    let spawner = Spawner::new(Basis {
        identities: entered.identities,
        opens_kept: !entered.worker_reads,
        namespaces,
        network,
        cgroups,
        shared,
        directories: None,
        has_seccomp: has("seccomp"),
    })
    .map_err(host)?;
    Ok(Laid {
        spawner,
        controllers,
        ids: entered.detail,
        inotify,
    })
}

fn is_present(features: &[Feature], name: &str) -> bool {
    features.iter().any(|feature| feature.name == name && feature.present)
}

fn take_over_cgroup(config: &Configure, owner: Option<u32>) -> Result<Option<Subtree>, LauncherError> {
    let found = features::find_cgroup(config.cgroup.as_deref());
    if config.cgroup.is_some() && found.is_none() {
        return Err(host(
            "cgroup: the configured directory is not delegated with memory and pids",
        ));
    }
    let taken = found.map(|directory| Subtree::take_over(&directory, owner));
    taken.transpose().map_err(host)
}

fn missing(features: &[Feature], level: Level) -> String {
    let lacking = features
        .iter()
        .filter(|feature| !feature.present && feature.without < level);
    let list: Vec<_> = lacking
        .map(|feature| format!("{} ({})", feature.name, feature.detail))
        .collect();
    let (level, missing) = (level.name(), list.join(", "));
    format!("level {level} is not possible on this host; missing: {missing}")
}
