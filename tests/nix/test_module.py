"""The NixOS module, evaluated: settings that a node takes, the units of systemd/ with what a machine adds to them, and
refusals that say what would be right."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.config import NodeConfig, check_config, load_config
from jobs.declarations import parse
from tests.docs.guides import blocks
from tests.nix.nix import NIX, ROOT, EvaluationFailed, evaluate, machine, needs_nix, nixpkgs_lib, refusals, toml
from tests.nix.units import KINDS, lay_out, read_unit

pytestmark = needs_nix

SYSTEMD = ROOT / "systemd"
ALONE = 'services.jobs.enable = true; networking.hostName = "alpha";'
MEMBERS = """
  services.jobs.enable = true;
  networking.hostName = "alpha";
  services.jobs.cluster.members = {
    alpha.addresses = [ "10.0.0.1:7420" "[fd00::1]:7420" ];
    beta.addresses = [ "10.0.0.2:7420" "[fd00::2]:7420" ];
    gamma.addresses = [ "10.0.0.3:7420" ];
  };
"""
FULL = """
  services.jobs = {
    cluster.bootstrap = true;
    openFirewall = true;
    settings.retention.keep_s = 3600.25;
    settings.workers.shell.limits.memory_bytes = "4GiB";
    settings.workers.replication.allow_files = [ "/srv/exports" ];
    workers.shell = { slots = 8; labels.gpu = "yes"; labels."cpu.arch" = "zen"; resources.gpu = 2; cpuMilli = 4000; };
    workers.shell.memory = "16GiB";
    workers.shell.credentials.deploy = "/run/secrets/deploy";
    settings.workers.shell.credentials.deploy.users = [ "alice" ];
    workers.blob.readWritePaths = [ "/srv/exports" ];
    workers.sql.enable = false;
    workers.replication.credentials.identity = "/run/secrets/age";
    credentials."jobs.secrets-key" = "/run/secrets/jobs-key";
    users = [ "alice" ];
    admins = [ "bob" ];
    queues.batch = { max_running = 8; weight = 2.5; };
    schedules.nightly = { cron = "30 2 * * *"; job = { type = "shell"; payload.argv = [ "true" ]; }; };
    backups.main = { directory = "/srv/backups"; keepFull = 7; };
  };
"""
MANY = """
  services.jobs.cluster.members = lib.genAttrs
    [ "1" "2" "3" "4" "5" "6" "7" "8" "9" ] (name: { addresses = [ "10.0.1.${name}:7420" ]; });
"""


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    return machine(MEMBERS, FULL)


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the package has of systemd/ and the documents."""
    out = tmp_path_factory.mktemp("package")
    subprocess.run(["bash", NIX / "install-units.sh", ROOT, out], check=True, timeout=60)
    return out


def config_of(found: dict[str, Any], tmp_path: Path) -> NodeConfig:
    """Return the configuration that a node on this machine has."""
    file = tmp_path / "node.toml"
    file.write_text(toml(found["settings"]["value"]))
    assert check_config(file) == []
    return load_config(file)


# --- settings and declarations ----------------------------------------------------------------------------------------


def test_a_node_alone_needs_nothing_but_to_be_enabled(tmp_path: Path) -> None:
    found = machine(ALONE)
    assert found["failed"] == found["warnings"] == []
    config = config_of(found, tmp_path)
    assert config.node.id == "alpha"
    assert config.cluster.listen == ()
    assert config.workers == NodeConfig().workers
    assert found["firewall"] == {"allowedUDPPorts": [], "extraCommands": "", "extraInputRules": ""}
    assert "jobs-cluster" not in found["services"]


def test_nothing_is_there_unless_enabled() -> None:
    found = machine()
    assert found["settings"] is None
    assert found["services"] == found["users"] == {}


def test_settings_are_those_of_a_node(full: dict[str, Any], tmp_path: Path) -> None:
    assert full["failed"] == full["warnings"] == []
    config = config_of(full, tmp_path)
    assert config.cluster.listen == ("10.0.0.1:7420", "[fd00::1]:7420")
    assert config.cluster.moved == {"beta": ("10.0.0.2:7420", "[fd00::2]:7420"), "gamma": ("10.0.0.3:7420",)}
    assert config.retention.keep_s == 3600.25
    shell = config.workers.shell
    assert (shell.slots, shell.cpu_milli, shell.memory_bytes) == (8, 4000, 16 << 30)
    assert shell.labels == {"gpu": "yes", "cpu.arch": "zen"}
    assert shell.resources == {"gpu": 2}
    assert shell.limits.memory_bytes == 4 << 30
    assert shell.credentials["deploy"].users == ("alice",)
    assert set(config.workers.replication.allow_files) == {Path("/srv/exports"), Path("/srv/backups")}


def test_what_is_declared_is_what_apply_takes(full: dict[str, Any]) -> None:
    declared = parse(json.dumps(full["declaration"]["value"]).encode())
    assert declared.name == "nixos"
    assert declared.queues["batch"].max_running == 8
    assert set(declared.schedules) == {"nightly", "backup-main"}
    backup = declared.schedules["backup-main"].job.payload
    assert (backup.directory, backup.keep_full, backup.full_every) == ("/srv/backups", 7, 24)  # type: ignore[union-attr]
    assert "/srv/backups" in full["services"]["jobs-worker@replication"]["serviceConfig"]["ReadWritePaths"]
    assert full["tmpfiles"]["rules"] == ["d /srv/backups 0700 jobs-replication jobs-replication -"]


@pytest.mark.parametrize(
    ("options", "what", "complaint"),
    [
        ("", "settings", None),
        ("services.jobs.settings.api.max_conections = 3;", "settings", "api.max_conections"),
        ("services.jobs.queues.batch.max_running = 8;", "declaration", None),
        ('services.jobs.queues.batch.weight = "heavy";', "declaration", '$.queues."batch".weight'),
        ('services.jobs.backups.b = { directory = "/b"; cron = "61 * * * *"; };', "declaration", "cron"),
    ],
)
def test_the_build_fails_for_what_no_node_would_take(
    tmp_path: Path, options: str, what: str, complaint: str | None
) -> None:
    """The script that the build of the file runs, with the real commands."""
    found = machine(ALONE, options)[what]
    source, out = tmp_path / "source", tmp_path / "out"
    source.write_text(toml(found["value"]) if what == "settings" else json.dumps(found["value"]))
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, module in (("jobctl", "jobs.cli.main"), ("jobs-node", "jobs.node")):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (commands / name).chmod(0o755)
    script = found["script"].replace("/nix/store/stub-jobs/bin", str(commands))
    assert script != found["script"]
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        env={**os.environ, "file": str(source), "out": str(out)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if complaint is None:
        assert done.returncode == 0, done.stderr
        assert out.read_text() == source.read_text()
    else:
        assert done.returncode != 0
        assert complaint in done.stdout + done.stderr
        assert not out.exists()


def test_a_cross_build_runs_nothing() -> None:
    found = evaluate(NIX / "tests" / "eval.nix", machine=f"{{ {ALONE} }}", canExecute="false")
    assert "jobs-node" not in found["settings"]["script"]


# --- units ------------------------------------------------------------------------------------------------------------


def test_units_are_those_of_systemd_and_a_machine_only_adds_to_them(full: dict[str, Any]) -> None:
    own = {file.name for file in (SYSTEMD / "system").iterdir() if file.is_file()}
    of_the_module = {"jobs-cluster.service", "jobs-declarations.service"}
    added: dict[str, set[str]] = {}
    for kind, suffix in KINDS.items():
        for name, unit in full[kind].items():
            template = re.sub(r"@.*", "@", name) + f".{suffix}"
            if template in of_the_module:
                continue
            assert template in own, f"{template} is not in systemd/"
            # The template is not the instance: NixOS makes a drop-in only when it is told to.
            assert unit["overrideStrategy"] == ("asDropin" if "@" in name else "asDropinIfExists")
            added[f"{name}.{suffix}"] = {
                key for section in ("serviceConfig", "socketConfig") for key in unit.get(section, {})
            }
            assert unit["unitConfig"] == {}
            assert unit["description"] == ""
    assert {name: keys for name, keys in added.items() if keys} == {
        "jobs-node.service": {"LoadCredential"},
        "jobs-worker@shell.service": {"LoadCredential"},
        "jobs-worker@blob.service": {"ReadWritePaths"},
        "jobs-worker@replication.service": {"ReadWritePaths", "LoadCredential"},
    }
    assert full["packages"] == full["tmpfiles"]["packages"] == ["jobs"]


def test_units_are_wanted_by_what_their_install_sections_say(full: dict[str, Any]) -> None:
    """NixOS does not read them."""
    wanted = {}
    for file in (SYSTEMD / "system").iterdir():
        if file.is_file() and (install := read_unit(file).get("Install")):
            wanted[file.name] = {name for line in install.get("WantedBy", []) for name in line.split()}
    found: dict[str, set[str]] = {}
    for kind, suffix in KINDS.items():
        for name, unit in full[kind].items():
            if unit["overrideStrategy"] == "asDropin" or f"{name}.{suffix}" in wanted:
                found.setdefault(re.sub(r"@.*", "@", name) + f".{suffix}", set()).update(unit["wantedBy"])
    assert found == wanted


def test_workers_that_are_not_enabled_are_not_started(full: dict[str, Any]) -> None:
    workers = {name.partition("@")[2] for name in full["services"] if "@" in name}
    assert workers == {"shell", "blob", "maintenance", "replication"}


def test_a_changed_configuration_restarts_without_a_stop(full: dict[str, Any]) -> None:
    """A stop of the node stops its sockets, and would turn clients away."""
    for name, service in full["services"].items():
        if name == "jobs-node" or "@" in name:
            assert service["stopIfChanged"] is False


def test_users_and_groups_are_those_of_systemd(full: dict[str, Any]) -> None:
    users: dict[str, set[str]] = {}
    own: dict[str, str] = {}
    groups: set[str] = set()
    for line in (SYSTEMD / "sysusers.d" / "jobs.conf").read_text().splitlines():
        kind, *rest = line.split() or [""]
        if kind == "u":
            users.setdefault(rest[0], set())
            own[rest[0]] = rest[1].removeprefix("-").removeprefix(":") or rest[0]
            groups.add(own[rest[0]])
        elif kind == "g":
            groups.add(rest[0])
        elif kind == "m":
            users[rest[0]].add(rest[1])
    made = full["users"]
    assert {name: set(user["extraGroups"]) for name, user in made.items()} == users
    assert all(user["isSystemUser"] for user in made.values())
    assert {name: user["group"] for name, user in made.items()} == own
    assert set(full["groups"]) == groups
    assert full["groups"]["jobs"]["members"] == ["alice", "bob"]
    assert full["groups"]["jobs-admin"]["members"] == ["bob"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_takes_the_units_as_nixos_lays_them_out(full: dict[str, Any], packaged: Path, tmp_path: Path) -> None:
    commands = packaged / "bin"
    commands.mkdir(exist_ok=True)
    for name in ("jobctl", "jobs-node", "jobs-worker"):
        (commands / name).write_text("#!/bin/sh\n")
        (commands / name).chmod(0o755)
    text = json.dumps(full).replace("/nix/store/stub-jobs/bin", str(commands))
    lay_out(packaged / "lib" / "systemd" / "system", json.loads(text), tmp_path)
    # What systemd has learned since Debian 12's, which may be the one that is asked.
    for file in tmp_path.rglob("*.*"):
        if file.is_file():
            file.write_text(re.sub(r"(?m)^Restart(Steps|MaxDelaySec)=.*\n", "", file.read_text()))
    names = [
        f"{name}.{suffix}"
        for kind, suffix in KINDS.items()
        for name in full[kind]
        if not name.startswith("jobs-worker@")
    ]
    workers = [f"{name}.service" for name in full["services"] if "@" in name]
    done = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            "--recursive-errors=no",
            *(str(tmp_path / name) for name in names + workers),
        ],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    node = read_unit(tmp_path / "jobs-node.service", tmp_path / "jobs-node.service.d" / "overrides.conf")
    assert node["Service"]["ExecStart"] == [f"{commands}/jobs-node"]
    assert node["Service"]["LoadCredential"] == ["jobs.secrets-key:/run/secrets/jobs-key"]


def test_the_package_has_every_unit_with_its_own_commands(packaged: Path) -> None:
    units = packaged / "lib" / "systemd" / "system"
    for file in (SYSTEMD / "system").rglob("*"):
        if file.is_file():
            text = (units / file.relative_to(SYSTEMD / "system")).read_text()
            assert "/usr/bin/jobs" not in text
            assert (
                text.replace(f"{packaged}/bin/", "/usr/bin/").replace(f"{packaged}/share", "/usr/share")
                == file.read_text()
            )
    for unit in ("jobs-node.service", "jobs-worker@.service"):
        assert (units / f"{unit}.d" / "20-backoff.conf").read_text() == (SYSTEMD / "backoff.conf").read_text()
    named = re.findall(
        r"Documentation=file://(\S+)", "".join(file.read_text() for file in units.glob("*.*") if file.is_file())
    )
    assert named
    assert (packaged / "lib" / "tmpfiles.d" / "jobs.conf").read_text() == (
        SYSTEMD / "tmpfiles.d" / "jobs.conf"
    ).read_text()


# --- cluster ----------------------------------------------------------------------------------------------------------


def test_members_are_let_in_by_the_firewall_and_nobody_else(full: dict[str, Any]) -> None:
    rules = full["firewall"]["extraCommands"].splitlines()
    assert rules == [
        "iptables -A nixos-fw -p udp -s 10.0.0.2 --dport 7420 -j nixos-fw-accept",
        "ip6tables -A nixos-fw -p udp -s fd00::2 --dport 7420 -j nixos-fw-accept",
        "iptables -A nixos-fw -p udp -s 10.0.0.3 --dport 7420 -j nixos-fw-accept",
    ]
    assert full["firewall"]["allowedUDPPorts"] == []
    tables = machine(MEMBERS, "services.jobs.openFirewall = true; networking.nftables.enable = true;")["firewall"]
    assert tables["extraInputRules"].splitlines()[1] == "ip6 saddr fd00::2 udp dport 7420 accept"
    assert tables["extraCommands"] == ""
    anybody = machine(ALONE, 'services.jobs = { openFirewall = true; settings.cluster.listen = [ "10.0.0.1:7421" ]; };')
    assert anybody["firewall"]["allowedUDPPorts"] == [7421]
    assert machine(MEMBERS)["firewall"] == {"allowedUDPPorts": [], "extraCommands": "", "extraInputRules": ""}


def test_a_cluster_is_founded_or_joined_once(full: dict[str, Any]) -> None:
    founder = full["services"]["jobs-cluster"]
    assert founder["script"].endswith("jobctl cluster init --if-unformed")
    assert full["paths"] == {}
    joiner = machine(MEMBERS, 'services.jobs.cluster.ticketFile = "/run/secrets/ticket";')
    service = joiner["services"]["jobs-cluster"]
    assert service["script"].endswith('jobctl cluster join - --if-unformed < "$CREDENTIALS_DIRECTORY/ticket"')
    assert service["serviceConfig"]["LoadCredential"] == ["ticket:/run/secrets/ticket"]
    assert service["unitConfig"]["ConditionPathExists"] == "/run/secrets/ticket"
    assert joiner["paths"]["jobs-cluster"]["pathConfig"] == {"PathExists": "/run/secrets/ticket"}


def test_a_member_that_declares_nothing_takes_nothing_away() -> None:
    """Else it would remove what another node has declared."""
    assert "jobs-declarations" not in machine(MEMBERS)["services"]
    assert "jobs-declarations" in machine(MEMBERS, "services.jobs.queues.q = { };")["services"]
    assert "jobs-declarations" in machine(ALONE)["services"]


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wrong", "fix"),
    [
        ((MEMBERS, 'services.jobs.settings.node.id = "delta";'), "has no delta", "one of alpha beta gamma"),
        (
            (MEMBERS, 'services.jobs.cluster = { bootstrap = true; ticketFile = "/run/t"; };'),
            "founds a cluster",
            "bootstrap on one node, and ticketFile on the others",
        ),
        ((ALONE, "services.jobs.cluster.bootstrap = true;"), "has to be reached", "cluster.members.alpha.addresses"),
        ((ALONE, "services.jobs.openFirewall = true;"), "no port to open", "settings.cluster.listen"),
        ((ALONE, "security.allowUserNamespaces = false;"), "user namespace", "security.allowUserNamespaces = true"),
        (
            (ALONE, 'services.jobs = { backups.b.directory = "/b"; workers.replication.enable = false; };'),
            "written by the worker for replication",
            "workers.replication.enable = true",
        ),
        ((ALONE, 'services.jobs.backups.b.directory = "b";'), "backups.b.directory is no absolute path", "/srv/jobs"),
        ((ALONE, 'services.jobs.backups.b.directory = "/srv/b c";'), "white space", "/srv/jobs"),
        ((ALONE, 'services.jobs.backups.b.directory = "/home/b";'), "do not see", "/srv/jobs"),
        ((ALONE, 'services.jobs.workers.blob.readWritePaths = [ "srv" ];'), "workers.blob.readWritePaths", "/srv/jobs"),
        (
            (ALONE, 'services.jobs.backups = { a.directory = "/srv/b"; b.directory = "/srv/b"; };'),
            "same directory twice",
            "a directory of its own",
        ),
        (
            (MEMBERS, 'services.jobs.cluster.members.beta.addresses = lib.mkForce [ "10.0.0.2" ];'),
            "cluster.members.beta.addresses is 10.0.0.2",
            "[fd00::1]:7420",
        ),
        (
            (MEMBERS, 'services.jobs.cluster.members.beta.addresses = lib.mkForce [ "beta:7420" ];'),
            "cluster.members.beta.addresses is beta:7420",
            "IP addresses",
        ),
        (
            (MEMBERS, "services.jobs.cluster.members.alpha.addresses = lib.mkForce [ ];"),
            "cluster.members.alpha.addresses is empty",
            "list IP addresses with ports",
        ),
        (
            (MEMBERS, 'services.jobs.cluster.members.beta.addresses = [ "10.0.0.3:7420" ];'),
            "same address twice",
            "give each member its own",
        ),
        (("services.jobs.enable = true;", 'networking.hostName = "";'), "no name of a node", "such as alpha"),
        ((ALONE, 'services.jobs.credentials."a:b" = "/run/a";'), '"a:b" is no name', "as in jobs.secrets-key"),
        (
            (ALONE, 'services.jobs.settings.tracing.headers_file = "/nix/store/aaa-headers";'),
            "settings.tracing.headers_file would be in the Nix store",
            "/run/secrets/jobs",
        ),
        (
            (ALONE, "services.jobs.settings.secrets.key_file = /etc/key;"),
            "settings.secrets.key_file would be in the Nix store",
            "in quotes",
        ),
        (
            (ALONE, 'services.jobs.settings.workers.shell.credentials.k.path = "/nix/store/aaa-k";'),
            "settings.workers.shell.credentials.k.path would be",
            "/run/secrets/jobs",
        ),
        (
            (ALONE, 'services.jobs.credentials.key = "/nix/store/aaa-key";'),
            'services.jobs.credentials."key" would be in the Nix store',
            "/run/secrets/jobs",
        ),
        (
            (ALONE, 'services.jobs.workers.shell.credentials.key = "key";'),
            'services.jobs.workers.shell.credentials."key"',
            "/run/secrets/jobs",
        ),
        (
            (MEMBERS, 'services.jobs.cluster.ticketFile = "/nix/store/t";'),
            "ticketFile would be in the Nix store",
            "quotes",
        ),
        ((ALONE, 'services.jobs.settings.node.data_dir = "/data";'), "node.data_dir is decided", "mount the disk"),
        ((ALONE, 'services.jobs.settings.api.mode = "0666";'), "api.mode is decided", "SocketMode"),
        (
            (MEMBERS, MANY),
            "more than 9 nodes",
            "declare fewer",
        ),
    ],
)
def test_a_refusal_says_what_would_be_right(options: tuple[str, str], wrong: str, fix: str) -> None:
    failed = refusals(*options)
    assert len(failed) == 1, failed
    assert wrong in failed[0]
    assert fix in failed[0]


def test_an_even_number_of_members_is_warned_of() -> None:
    found = machine(
        ALONE,
        'services.jobs.cluster.members = { alpha.addresses = [ "10.0.0.1:1" ]; beta.addresses = [ "10.0.0.2:1" ]; };',
    )
    assert len(found["warnings"]) == 1


@pytest.mark.parametrize(
    "options",
    [
        "services.jobs.workers.shel.slots = 1;",
        "services.jobs.workers.shell.slots = 0;",
        "services.jobs.cluster.memebers = { };",
        "services.jobs.openFirewall = 1;",
        "services.jobs = { workers.shell.slots = 8; settings.workers.shell.slots = 9; };",
    ],
)
def test_options_that_are_none_or_contradict_each_other_do_not_evaluate(options: str) -> None:
    with pytest.raises(EvaluationFailed):
        machine(ALONE, options)


# --- what the document shows ------------------------------------------------------------------------------------------


def shown() -> list[str]:
    found = [block.text for block in blocks("docs/nixos.md") if block.language == "nix"]
    assert len(found) == 6
    return found


def test_the_configurations_of_the_document_are_taken(tmp_path: Path) -> None:
    whole, cluster, founder, joiner, declared, secrets = shown()
    name = 'networking.hostName = "alpha";'
    for options in ((cluster,), (cluster, founder), (cluster, joiner), (cluster, founder, declared), (ALONE, secrets)):
        found = machine(name, *options)
        assert found["failed"] == found["warnings"] == []
        config_of(found, tmp_path)
        if found["declaration"] is not None:
            parse(json.dumps(found["declaration"]["value"]).encode())
    # The whole of a flake, with the module in place of nixpkgs' way to a system
    expression = f"""
      let
        lib = import {NIX}/tests/stubs/lib.nix;
        flake = {whole};
        made = flake.outputs {{
          nixpkgs.lib.nixosSystem = {{ modules, ... }}: import {NIX}/tests/eval.nix {{
            machine = {{ imports = modules; }};
          }};
          jobs.nixosModules.default = {{ }};
        }};
      in made.nixosConfigurations.alpha
    """
    (tmp_path / "whole.nix").write_text(expression)
    found = evaluate(tmp_path / "whole.nix")
    assert found["failed"] == []
    config = config_of(found, tmp_path)
    assert (config.node.id, config.workers.shell.slots, config.retention.keep_s) == ("alpha", 8, 2592000)
    assert found["groups"]["jobs"]["members"] == ["alice", "bob"]
    assert "jobs-worker@sql" not in found["services"]


# --- the stub ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(ALONE,), (MEMBERS, FULL), (MEMBERS,), ()])
def test_nixpkgs_lib_comes_to_the_same_as_the_stub(options: tuple[str, ...]) -> None:
    lib = nixpkgs_lib()
    if lib is None:
        pytest.skip("no <nixpkgs/lib> here; JOBS_TEST_NIXPKGS_LIB names its path")
    assert machine(*options, lib=lib) == machine(*options)
