//! Tables for DataFusion in another library, by its binary interface.
//!
//! Filters come over that interface as protobuf. A scan only looks at their form and evaluates no function in them, so
//! functions are carried by name alone: neither side has to know those of the other.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, SchemaRef};
use datafusion_catalog::TableProvider;
use datafusion_common::{Result, TableReference, not_impl_err};
use datafusion_execution::{TaskContext, TaskContextProvider};
use datafusion_expr::logical_plan::Extension;
use datafusion_expr::{
    ColumnarValue, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion_ffi::table_provider::FFI_TableProvider;
use datafusion_proto::logical_plan::LogicalExtensionCodec;

use crate::table::Table;

/// A table as another library takes it.
pub type ExportedTable = FFI_TableProvider;

/// Make a table ready for another library.
#[must_use]
pub fn export(table: Arc<Table>) -> ExportedTable {
    let contexts: Arc<dyn TaskContextProvider> = Arc::<NoContext>::clone(&CONTEXTS);
    FFI_TableProvider::new(table, true, None, &contexts, Some(Arc::new(NamesOnly)))
}

/// The interface holds it weakly.
static CONTEXTS: LazyLock<Arc<NoContext>> = LazyLock::new(Arc::default);

#[derive(Default)]
struct NoContext(Arc<TaskContext>);

impl TaskContextProvider for NoContext {
    fn task_ctx(&self) -> Arc<TaskContext> {
        Arc::clone(&self.0)
    }
}

/// Carries functions by their names.
#[derive(Debug)]
struct NamesOnly;

impl LogicalExtensionCodec for NamesOnly {
    fn try_decode(&self, _: &[u8], _: &[LogicalPlan], _: &TaskContext) -> Result<Extension> {
        not_impl_err!("plans are not carried to tables of the store")
    }

    fn try_encode(&self, _: &Extension, _: &mut Vec<u8>) -> Result<()> {
        not_impl_err!("plans are not carried to tables of the store")
    }

    fn try_decode_table_provider(
        &self,
        _: &[u8],
        _: &TableReference,
        _: SchemaRef,
        _: &TaskContext,
    ) -> Result<Arc<dyn TableProvider>> {
        not_impl_err!("tables are not carried to tables of the store")
    }

    fn try_encode_table_provider(&self, _: &TableReference, _: Arc<dyn TableProvider>, _: &mut Vec<u8>) -> Result<()> {
        not_impl_err!("tables are not carried to tables of the store")
    }

    fn try_decode_udf(&self, name: &str, _: &[u8]) -> Result<Arc<ScalarUDF>> {
        Ok(Arc::new(ScalarUDF::new_from_impl(Named {
            name: name.into(),
            signature: Signature::variadic_any(Volatility::Volatile),
        })))
    }
}

/// A function of which only the name is known.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Named {
    name: String,
    signature: Signature,
}

impl ScalarUDFImpl for Named {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Null)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        not_impl_err!("function {} is not evaluated by a scan", self.name)
    }
}
