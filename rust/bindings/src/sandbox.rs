//! Python face of `jobs-sandbox`.

use jobs_sandbox::confine::{Costs, confine as leave_only};
use jobs_sandbox::host::{self, Feature};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// The launcher as a program of its own: it shares no memory with what this library is loaded into.
static LAUNCHER: &[u8] = include_bytes!(env!("JOBS_LAUNCHER"));

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(launcher_program, module)?)?;
    module.add_function(wrap_pyfunction!(give_up_capabilities, module)?)?;
    module.add_function(wrap_pyfunction!(confine, module)?)?;
    module.add_function(wrap_pyfunction!(sandbox_probe, module)?)
}

#[pyfunction]
fn launcher_program(py: Python<'_>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, LAUNCHER)
}

#[pyfunction]
fn give_up_capabilities() -> PyResult<()> {
    jobs_sandbox::give_up_capabilities()
        .map_err(|errno| PyRuntimeError::new_err(format!("give up capabilities: {errno}")))
}

#[pyfunction]
fn sandbox_probe(py: Python<'_>) -> Vec<(&'static str, bool, bool, String)> {
    let row = |feature: Feature| (feature.name, feature.present, feature.is_required(), feature.detail);
    py.detach(|| host::probe(None)).into_iter().map(row).collect()
}

/// Leaves this process nothing but its working directory, which is its root from then on, and what is open.
#[pyfunction]
#[pyo3(signature = (*, identity, memory_bytes, file_bytes, cpu_s))]
fn confine(identity: Option<u32>, memory_bytes: u64, file_bytes: u64, cpu_s: u64) -> PyResult<()> {
    let costs = Costs {
        memory_bytes,
        file_bytes,
        cpu_s,
    };
    leave_only(identity, costs)
        .map_err(|error| PyRuntimeError::new_err(format!("give up all but a directory: {error}")))
}
