//! The one list of points, of Rust and Python. A test compares it with the source.

/// Whether an operation at a point can be made to fail.
macro_rules! points {
    ($($point:ident = $name:literal $kind:ident,)*) => {
        /// A place in the source, passed from there only. Points named `python` are passed by their name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "their names say what they are")]
        pub enum Point { $($point,)* }

        /// Every point with its name and whether an error can be armed there.
        pub(crate) const POINTS: &[(&str, bool)] = &[$(($name, points!(@ $kind)),)*];
    };
    (@ fails) => { true };
    (@ plain) => { false };
}

points! {
    LogWriteBefore = "log.write.before" fails,
    LogSyncBefore = "log.sync.before" fails,
    LogSyncAfter = "log.sync.after" fails,
    LogDirectorySyncBefore = "log.directory.sync.before" fails,
    LogDirectorySyncAfter = "log.directory.sync.after" fails,
    LogSegmentCreateBefore = "log.segment.create.before" fails,
    LogSegmentSyncBefore = "log.segment.sync.before" fails,
    LogSegmentRenameBefore = "log.segment.rename.before" fails,
    LogSegmentRenameAfter = "log.segment.rename.after" fails,
    LogSegmentRemoveBefore = "log.segment.remove.before" fails,
    LogSegmentRemoveAfter = "log.segment.remove.after" fails,
    LogRepairBefore = "log.repair.before" fails,
    LogRepairSyncBefore = "log.repair.sync.before" fails,

    StoreApplyBefore = "store.apply.before" fails,
    StoreApplyCommitBefore = "store.apply.commit.before" fails,
    StoreApplyCommitAfter = "store.apply.commit.after" plain,
    StoreReplaceSyncBefore = "store.replace.sync.before" fails,
    StoreReplaceRenameBefore = "store.replace.rename.before" fails,
    StoreReplaceRenameAfter = "store.replace.rename.after" fails,
    StoreDirectorySyncBefore = "store.directory.sync.before" fails,
    StoreDirectorySyncAfter = "store.directory.sync.after" fails,
    StoreSnapshotBefore = "store.snapshot.before" fails,
    StoreSnapshotRemoveBefore = "store.snapshot.remove.before" fails,
    StoreInstallBefore = "store.install.before" fails,
    StoreInstallSyncBefore = "store.install.sync.before" fails,
    StoreInstallRenameBefore = "store.install.rename.before" fails,
    StoreInstallRenameAfter = "store.install.rename.after" plain,
    StoreInstallCommitBefore = "store.install.commit.before" fails,
    StoreInstallCommitAfter = "store.install.commit.after" plain,
    StoreInstallFinishBefore = "store.install.finish.before" fails,
    StoreRestoreSyncBefore = "store.restore.sync.before" fails,
    StoreRestoreRenameBefore = "store.restore.rename.before" fails,
    StoreRestoreRenameAfter = "store.restore.rename.after" fails,
    StoreCloseSyncBefore = "store.close.sync.before" fails,
    StoreCloseSyncAfter = "store.close.sync.after" plain,

    NetKeySyncBefore = "net.key.sync.before" fails,
    NetKeyLinkBefore = "net.key.link.before" fails,
    NetKeyLinkAfter = "net.key.link.after" plain,
    NetKeyDirectorySyncBefore = "net.key.directory.sync.before" fails,
    NetMessageSendBefore = "net.message.send.before" plain,
    NetMessageSendAfter = "net.message.send.after" plain,
    NetMessageReceiveAfter = "net.message.receive.after" plain,
    NetRequestSendBefore = "net.request.send.before" plain,
    NetRequestSendAfter = "net.request.send.after" plain,
    NetRequestReceiveAfter = "net.request.receive.after" plain,
    NetAnswerSendBefore = "net.answer.send.before" plain,
    NetAnswerSendAfter = "net.answer.send.after" plain,

    PythonClusterFileWriteBefore = "cluster.file.write.before" fails,
    PythonClusterFileSyncBefore = "cluster.file.sync.before" fails,
    PythonClusterFileRenameBefore = "cluster.file.rename.before" fails,
    PythonClusterFileRenameAfter = "cluster.file.rename.after" plain,
    PythonClusterFileDirectorySyncAfter = "cluster.file.directory.sync.after" plain,
    PythonTransferOfferBefore = "transfer.offer.before" plain,
    PythonTransferChunkSendBefore = "transfer.chunk.send.before" fails,
    PythonTransferChunkReceiveBefore = "transfer.chunk.receive.before" fails,
    PythonTransferChunkReceiveAfter = "transfer.chunk.receive.after" fails,
    PythonTransferSyncBefore = "transfer.sync.before" fails,
    PythonTransferRenameBefore = "transfer.rename.before" fails,
    PythonTransferRenameAfter = "transfer.rename.after" plain,
    PythonTransferDirectorySyncAfter = "transfer.directory.sync.after" plain,
    PythonTransferKeptSendBefore = "transfer.kept.send.before" plain,
    PythonConsensusReceiveBefore = "consensus.receive.before" plain,
    PythonConsensusProposeBefore = "consensus.propose.before" plain,
    PythonConsensusSyncBefore = "consensus.sync.before" plain,
    PythonConsensusSyncAfter = "consensus.sync.after" plain,
    PythonConsensusAppendSendBefore = "consensus.append.send.before" plain,
    PythonConsensusAppendSendAfter = "consensus.append.send.after" plain,
    PythonConsensusAppendedSendBefore = "consensus.appended.send.before" plain,
    PythonConsensusAppendedSendAfter = "consensus.appended.send.after" plain,
    PythonConsensusVoteSendBefore = "consensus.vote.send.before" plain,
    PythonConsensusVoteSendAfter = "consensus.vote.send.after" plain,
    PythonConsensusVotedSendBefore = "consensus.voted.send.before" plain,
    PythonConsensusVotedSendAfter = "consensus.voted.send.after" plain,
    PythonConsensusTimeoutNowSendBefore = "consensus.timeoutnow.send.before" plain,
    PythonConsensusTimeoutNowSendAfter = "consensus.timeoutnow.send.after" plain,
    PythonConsensusTermPersistBefore = "consensus.term.persist.before" plain,
    PythonConsensusTermPersistAfter = "consensus.term.persist.after" plain,
    PythonConsensusApplyBefore = "consensus.apply.before" plain,
    PythonConsensusApplyAfter = "consensus.apply.after" plain,
    PythonConsensusResultsBefore = "consensus.results.before" plain,
    PythonConsensusCutBefore = "consensus.cut.before" plain,
    PythonConsensusCutAfter = "consensus.cut.after" plain,
    PythonConsensusRestartBefore = "consensus.restart.before" plain,
    PythonConsensusRestartDropped = "consensus.restart.dropped" plain,
    PythonConsensusRestartEmpty = "consensus.restart.empty" plain,
    PythonConsensusRestartAfter = "consensus.restart.after" plain,
    PythonConsensusInstallBefore = "consensus.install.before" plain,
    PythonConsensusInstallAfter = "consensus.install.after" plain,
    PythonConsensusSnapshotSendBefore = "consensus.snapshot.send.before" plain,
    PythonConsensusSnapshotSendAfter = "consensus.snapshot.send.after" plain,
}
