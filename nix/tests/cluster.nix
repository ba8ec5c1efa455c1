# Three machines that form a cluster, for nixpkgs' test driver: `nix build .#checks.x86_64-linux.cluster`.
{ pkgs, package }:

let
  # The driver numbers machines by their names.
  members = {
    alpha.addresses = [ "192.168.1.1:7420" ];
    beta.addresses = [ "192.168.1.2:7420" ];
    gamma.addresses = [ "192.168.1.3:7420" ];
  };
  ticketFile = "/run/jobs-ticket";

  machine =
    { lib, ... }:
    {
      imports = [ ../module.nix ];
      services.jobs = {
        enable = true;
        inherit package;
        cluster = { inherit members; };
        openFirewall = true;
        users = [ "alice" ];
        workers.shell.slots = 4;
      };
      users.users.alice.isNormalUser = true;
      users.users.mallory.isNormalUser = true;
      virtualisation.memorySize = 2048;
      # Shows that the members' addresses, and no others, are let in by both kinds of firewall.
      networking.nftables.enable = lib.mkDefault true;
    };
in
pkgs.testers.runNixOSTest {
  name = "jobs-cluster";

  nodes.alpha =
    { lib, ... }:
    {
      imports = [ machine ];
      networking.nftables.enable = false;
      services.jobs = {
        cluster.bootstrap = true;
        queues.batch.max_running = 2;
        schedules.tick = {
          every_s = 3600;
          job = {
            type = "shell";
            queue = "batch";
            payload.argv = [ "true" ];
          };
        };
        backups.main.directory = "/var/backups/jobs";
      };
      specialisation.changed.configuration.services.jobs = {
        queues = lib.mkForce { batch.max_running = 3; };
        schedules = lib.mkForce { };
        backups = lib.mkForce { };
        declarations.enable = true;
      };
    };
  nodes.beta = {
    imports = [ machine ];
    services.jobs.cluster = { inherit ticketFile; };
  };
  nodes.gamma = {
    imports = [ machine ];
    services.jobs.cluster = { inherit ticketFile; };
  };

  testScript = ''
    import json
    import shlex

    TYPES = ["shell", "sql", "blob", "maintenance", "replication"]


    def as_alice(command):
        return "su - alice -c " + shlex.quote(command)


    def view(machine):
        return json.loads(machine.succeed("jobctl --json cluster members"))


    def wait_for_voters(machine, count):
        machine.wait_until_succeeds(f"test $(jobctl cluster members | grep -c ' voter ') = {count}")


    start_all()

    with subtest("a node founds the cluster, and its workers register"):
        alpha.wait_for_unit("jobs-node.service")
        alpha.wait_for_unit("jobs-cluster.service")
        for type in TYPES:
            alpha.wait_for_unit(f"jobs-worker@{type}.service")
            alpha.wait_until_succeeds(f"jobctl workers | grep -w {type}")

    with subtest("who is in the group submits jobs, and nobody else"):
        assert alpha.succeed(as_alice("jobctl run -- echo hello")) == "hello\n"
        alpha.succeed(as_alice("jobctl run -- sh -c 'exit 3'; test $? = 3"))
        alpha.fail("su - mallory -c 'jobctl health'")

    with subtest("what is declared is there"):
        alpha.wait_for_unit("jobs-declarations.service")
        assert json.loads(alpha.succeed("jobctl --json queue show batch"))["max_running"] == 2
        assert json.loads(alpha.succeed("jobctl --json schedule show tick"))["schedule"]["managed_by"] == "nixos"

    with subtest("a backup is made and proven"):
        job = alpha.succeed("jobctl schedule trigger backup-main").strip()
        alpha.succeed(f"jobctl wait --timeout 120s {job}")
        alpha.succeed("jobctl backup list /var/backups/jobs")

    with subtest("the others join when they are given a ticket"):
        for number, machine in ((2, beta), (3, gamma)):
            machine.wait_for_unit("jobs-node.service")
            ticket = alpha.succeed("jobctl cluster ticket --ttl 10m").strip()
            machine.succeed(f"umask 077; echo {ticket} > ${ticketFile}.new; mv ${ticketFile}.new ${ticketFile}")
            machine.wait_for_unit("jobs-cluster.service")
            wait_for_voters(alpha, number)

    with subtest("any node takes any request"):
        key = "before"
        kept = gamma.succeed(f"jobctl submit --idempotency-key {key} -- echo kept").strip()
        assert beta.succeed(f"jobctl wait --timeout 60s {kept}; jobctl logs {kept}").endswith("kept\n")

    with subtest("a job outlives a restart of the node"):
        job = beta.succeed("jobctl submit -- sh -c 'sleep 20; echo done'").strip()
        alpha.wait_until_succeeds(f"jobctl status {job} | grep running")
        for machine in (alpha, beta, gamma):
            machine.succeed("systemctl restart jobs-node.service")
        beta.wait_until_succeeds(f"jobctl wait --timeout 120s {job}")
        assert beta.succeed(f"jobctl logs {job}") == "done\n"
        assert json.loads(beta.succeed(f"jobctl --json status {job}"))["attempt"] == 1

    with subtest("the leader is lost, and nothing that was acknowledged"):
        machines = {"alpha": alpha, "beta": beta, "gamma": gamma}
        lost = machines.pop(view(beta)["leader"])
        lost.crash()
        for machine in machines.values():
            machine.wait_until_succeeds("jobctl run -- true")
            assert machine.succeed(f"jobctl logs {kept}") == "kept\n"
        lost.start()
        lost.wait_for_unit("jobs-node.service")
        wait_for_voters(lost, 3)
        lost.wait_until_succeeds("jobctl run -- true")

    with subtest("a new configuration changes what is declared, and removes what is not any more"):
        alpha.succeed("/run/current-system/specialisation/changed/bin/switch-to-configuration test")
        alpha.wait_for_unit("jobs-declarations.service")
        alpha.wait_until_succeeds("jobctl --json queue show batch | grep '\"max_running\":3'")
        alpha.wait_until_fails("jobctl schedule show tick")

    with subtest("the units are as closed as they are meant to be"):
        alpha.succeed("systemd-analyze security --threshold=20 jobs-node.service")
        alpha.fail("systemctl --failed --no-legend | grep jobs")
  '';
}
