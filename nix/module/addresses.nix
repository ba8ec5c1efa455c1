# Addresses with ports, such as 10.0.0.1:7420 and [fd00::1]:7420, and the rules of a firewall that come of them.
{ lib }:

let
  parts = lib.splitString ":";
  port = address: lib.toInt (lib.last (parts address));
  host = address: lib.removePrefix "[" (lib.removeSuffix "]" (lib.concatStringsSep ":" (lib.init (parts address))));
  isIpv6 = lib.hasInfix ":";

  iptables =
    source: to:
    "${if isIpv6 source then "ip6tables" else "iptables"} -A nixos-fw -p udp -s ${source} --dport ${toString to} -j nixos-fw-accept";
  rule = source: to: "${if isIpv6 source then "ip6" else "ip"} saddr ${source} udp dport ${toString to} accept";
in
{
  inherit host port;

  firewall =
    {
      listen,
      sources,
      nftables,
    }:
    let
      ports = lib.unique (map port listen);
      hosts = lib.unique (map host sources);
      each = make: lib.concatStringsSep "\n" (lib.concatMap (to: map (source: make source to) hosts) ports) + "\n";
    in
    if hosts == [ ] then
      { allowedUDPPorts = ports; }
    else if nftables then
      { extraInputRules = each rule; }
    else
      { extraCommands = each iptables; };
}
