//! Python face of `jobs-sandbox`.

use jobs_sandbox::host::{self, Feature};
use jobs_sandbox::launcher;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(launcher_main, module)?)?;
    module.add_function(wrap_pyfunction!(give_up_capabilities, module)?)?;
    module.add_function(wrap_pyfunction!(sandbox_probe, module)?)
}

#[pyfunction]
fn launcher_main(py: Python<'_>, control_fd: i32) -> PyResult<()> {
    py.detach(|| launcher::serve(control_fd))
        .map_err(|error| PyRuntimeError::new_err(error.to_string()))
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
