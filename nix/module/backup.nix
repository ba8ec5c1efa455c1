# A series of backups, and the schedule that makes it.
{ lib }:

{ config, ... }:

let
  inherit (lib) mkOption types;
in
{
  options = {
    directory = mkOption {
      type = types.str;
      example = "/srv/backups/jobs";
      description = "Where the series is: a disk of another machine, or one that is copied elsewhere.";
    };
    cron = mkOption {
      type = types.str;
      default = "0 * * * *";
      description = "When.";
    };
    timezone = mkOption {
      type = types.str;
      default = "UTC";
      description = "In whose local time `cron` is meant.";
    };
    fullEvery = mkOption {
      type = types.ints.positive;
      default = 24;
      description = "After so many a full one.";
    };
    keepFull = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      description = "Remove the backups before the last so many full ones; null: none.";
    };
    recipients = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "age1…" ];
      description = "Public keys of age that they are encrypted for.";
    };
    blobs = mkOption {
      type = types.bool;
      default = true;
      description = "With the blobs that something refers to.";
    };
    schedule = mkOption {
      type = types.attrs;
      internal = true;
      readOnly = true;
      description = "What is declared of it.";
    };
  };

  config.schedule = {
    inherit (config) cron timezone;
    overlap = "skip";
    job = {
      type = "replication";
      payload = {
        operation = "backup";
        inherit (config) directory recipients blobs;
        full_every = config.fullEvery;
      }
      // lib.optionalAttrs (config.keepFull != null) { keep_full = config.keepFull; };
    };
  };
}
