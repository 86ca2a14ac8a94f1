//! Products by cuBLASLt, in its column-major order. An algorithm is requested once per shape, with large numbers of rows
//! rounded up to a bucket, and kept; one that was timed (`tune`) takes its place. The choice is a function of the shape, the
//! library, the GPU and the timed algorithms alone, so the same shapes give the same bits. Products that cuBLASLt does not
//! support, such as those with rows that are not 16-byte aligned, go to our own kernel. f32 is f32 (COMPUTE_32F) unless the plan allows TF32; bf16 and f16 sum in f32.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulPreferenceAttributes_t as Preference,
    cublasStatus_t as Status,
};

use serde::{Deserialize, Serialize};

use super::Cuda;
use super::arena::SCRATCH;
use super::error::OUT_OF_MEMORY;
use super::kernels::{Matmul, Ptr};
use super::tune;
use crate::console::note;
use crate::error::{Error, Kind, Result};
use crate::ops::{Arithmetic, DType};

/// `D = op(A) op(B) + bias (+ D)`, column-major: op(A) is (m, k), op(B) is (k, n), D is (m, n), columns `ld` apart.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub a: Ptr,
    pub b: Ptr,
    pub d: Ptr,
    /// (m), of D's type, or null.
    pub bias: Ptr,
    /// Type of A and B.
    pub input: DType,
    /// Type of D.
    pub output: DType,
    /// A is stored as (k, m).
    pub transpose_a: bool,
    /// B is stored as (n, k).
    pub transpose_b: bool,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub lda: usize,
    pub ldb: usize,
    pub ldd: usize,
    /// Whether to add to D.
    pub add: bool,
}

/// cuBLASLt, and the algorithms it has chosen.
pub struct Gemm {
    handle: sys::cublasLtHandle_t,
    /// 13.0.2 is (13, 0, 2).
    pub version: (usize, usize, usize),
    algorithms: HashMap<Shape, Algorithm>,
}

/// Opaque: what the library knows about how it computes a product.
pub type Algorithm = sys::cublasLtMatmulAlgo_t;

// SAFETY: the handle may be used by any thread, one at a time.
unsafe impl Send for Gemm {}

/// The inputs of the choice of an algorithm. Strides are in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shape {
    input: DType,
    output: DType,
    tf32: bool,
    transpose_a: bool,
    transpose_b: bool,
    m: usize,
    n: usize,
    k: usize,
    lda: usize,
    ldb: usize,
    ldd: usize,
    bias: bool,
    add: bool,
    /// Whether sums may be split over k.
    split_k: bool,
}

/// Large numbers of rows are rounded up to a multiple of this for the choice of an algorithm.
const BUCKET: usize = 128;
/// Smaller numbers of rows are not rounded: an algorithm for 128 rows is slow for 16, and may split a sum of 16 terms into
/// empty parts.
const EXACT: usize = 256;

/// Sums are split over k only if k is a multiple of this. Otherwise cuBLASLt was seen to drop up to a tile's last terms
/// (<https://github.com/facebookexperimental/triton/pull/2767>), which no loss curve would show.
const SPLITTABLE: usize = 64;

/// Numbers of rows of the same class have the same shapes of products, after rounding.
pub fn class(rows: usize) -> (usize, bool) {
    let bucket = if rows <= EXACT { rows } else { rows.next_multiple_of(BUCKET) };
    (bucket, rows.is_multiple_of(SPLITTABLE))
}

impl Gemm {
    pub fn new() -> Result<Gemm> {
        let handle = result::create_handle().map_err(|e| failed("cublasLtCreate", e))?;
        // SAFETY: takes nothing, returns a number.
        let version = unsafe { sys::cublasLtGetVersion() };
        let version = (version / 10_000, version / 100 % 100, version % 100);
        Ok(Gemm { handle, version, algorithms: HashMap::new() })
    }

    /// The algorithm for a shape, requested from cuBLASLt on first use.
    fn algorithm(&mut self, shape: Shape, p: &Product) -> Result<Algorithm, CublasError> {
        if let Some(algorithm) = self.algorithms.get(&shape) {
            return Ok(*algorithm);
        }
        let first = self.suggestions(shape, p, 1)?.first().copied();
        let algorithm = first.ok_or(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED))?;
        self.algorithms.insert(shape, algorithm);
        Ok(algorithm)
    }

    /// At most this many algorithms for a shape, in the order in which cuBLASLt suggests them. Partial sums of a split k are added
    /// in a fixed order, in f32: not in place, whose order is undetermined, and not rounded to D's type.
    pub fn suggestions(&self, shape: Shape, p: &Product, most: usize) -> Result<Vec<Algorithm>, CublasError> {
        use sys::cublasLtReductionScheme_t::*;
        let schemes = if shape.split_k { CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE } else { CUBLASLT_REDUCTION_SCHEME_NONE } as u32;
        let choice = Choice::new()?;
        choice.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &SCRATCH)?;
        choice.set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes)?;
        for alignment in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            choice.set(alignment, &16u32)?;
        }
        let description = Description::of(p, shape.tf32)?;
        let Matrices { a, b, d } = Matrices::new(&Product { m: shape.m, n: shape.n, k: shape.k, ..*p })?;
        let mut found = vec![NO_RESULT; most];
        let mut count = 0;
        // SAFETY: all of them are alive, and there is room for `most` results.
        unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                description.0,
                a.0,
                b.0,
                d.0,
                d.0,
                choice.0,
                most as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        }
        .result()?;
        found.truncate(count as usize);
        found.retain(|found| found.state == Status::CUBLAS_STATUS_SUCCESS);
        Ok(found.into_iter().map(|found| found.algo).collect())
    }

    /// Whether the library computes this very product with an algorithm, in the workspace that there is.
    pub fn supports(&self, algorithm: &Algorithm, p: &Product, shape: Shape) -> Result<bool, CublasError> {
        let (description, Matrices { a, b, d }) = (Description::of(p, shape.tf32)?, Matrices::new(p)?);
        let mut found = NO_RESULT;
        // SAFETY: all of them are alive.
        let status =
            unsafe { sys::cublasLtMatmulAlgoCheck(self.handle, description.0, a.0, b.0, d.0, d.0, algorithm, &mut found) };
        Ok(status == Status::CUBLAS_STATUS_SUCCESS && found.workspaceSize <= SCRATCH)
    }
}

const NO_RESULT: sys::cublasLtMatmulHeuristicResult_t = sys::cublasLtMatmulHeuristicResult_t {
    algo: Algorithm { data: [0; 8] },
    workspaceSize: 0,
    state: Status::CUBLAS_STATUS_NOT_SUPPORTED,
    wavesCount: 0.0,
    reserved: [0; 4],
};

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: created above, used only here. A failure would have surfaced earlier.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn failed(call: &str, e: CublasError) -> Error {
    let remedy = match e.0 {
        Status::CUBLAS_STATUS_ALLOC_FAILED => OUT_OF_MEMORY,
        _ => "check the cuBLAS installation; its CUDA version must be that of the driver",
    };
    Error::new(Kind::Device, call, format!("{:?}", e.0), remedy)
}

/// Runs a product.
pub fn product(cuda: &Cuda, p: &Product) -> Result<()> {
    let aligned = |address: Ptr, ld: usize, dtype: DType| address.is_multiple_of(16) && (ld * dtype.size()).is_multiple_of(16);
    let all = aligned(p.a, p.lda, p.input) && aligned(p.b, p.ldb, p.input) && aligned(p.d, p.ldd, p.output);
    // A bias is aligned if the rows are: the parts of a joint bias begin at multiples of a row.
    if all { by_cublas(cuda, p) } else { by_kernel(cuda, p) }
}

/// By our own kernel: any size, any alignment.
fn by_kernel(cuda: &Cuda, p: &Product) -> Result<()> {
    // Strides between neighbours in a column and in a row of a matrix.
    let steps = |transposed, ld: usize| if transposed { (ld as i32, 1) } else { (1, ld as i32) };
    let ((a_m, a_k), (b_k, b_n)) = (steps(p.transpose_a, p.lda), steps(p.transpose_b, p.ldb));
    let arguments = Matmul {
        a: p.a,
        b: p.b,
        d: p.d,
        bias: p.bias,
        m: p.m as i32,
        n: p.n as i32,
        k: p.k as i32,
        a_m,
        a_k,
        b_k,
        b_n,
        ldd: p.ldd as i32,
        add: p.add.into(),
    };
    let kernels = cuda.kernels();
    let kernel = match (p.input, p.output) {
        (DType::Bf16 | DType::F16, DType::F32) => kernels.matmul_into_f32.of(p.input),
        (input, output) => {
            assert_eq!(input, output, "no kernel multiplies {input:?} into {output:?}");
            kernels.matmul.of(input)
        }
    };
    cuda.launch(kernel, [(p.m * p.n).div_ceil(kernel.warps()), 1, 1], &arguments)
}

fn by_cublas(cuda: &Cuda, p: &Product) -> Result<()> {
    let tf32 = p.input == DType::F32 && cuda.arena().layout.arithmetic == Arithmetic::Tf32;
    let exact = Shape {
        input: p.input,
        output: p.output,
        tf32,
        transpose_a: p.transpose_a,
        transpose_b: p.transpose_b,
        m: p.m,
        n: p.n,
        k: p.k,
        lda: p.lda,
        ldb: p.ldb,
        ldd: p.ldd,
        bias: p.bias != 0,
        add: p.add,
        split_k: cuda.always_splits || p.k.is_multiple_of(SPLITTABLE),
    };
    // The number of rows is n in a forward product, and k in one for a weight's gradient.
    let bucket = match p.transpose_b {
        true => Shape { k: class(p.k).0, ..exact },
        false => Shape { n: class(p.n).0, ..exact },
    };
    let place = || format!("product of ({}, {}) and ({}, {}) by cuBLASLt", p.m, p.k, p.k, p.n);
    let done = multiply(cuda, &mut cuda.gpu.gemm(), p, exact, bucket);
    match done {
        Err(e) if is_refusal(&e) => {
            if !cuda.lacks_products.replace(true) {
                note(format!("note: {}: {:?}; a kernel that is many times slower computes such products", place(), e.0));
            }
            by_kernel(cuda, p)
        }
        // Earlier work may be the cause.
        done => {
            done.map_err(|e| cuda.stream().synchronize().map_or_else(super::error::failed(&place()), |()| failed(&place(), e)))
        }
    }
}

/// Runs a product of a shape with the algorithm timed for its bucket, else with the one suggested for the bucket, else with the one
/// suggested for the shape.
fn multiply(cuda: &Cuda, gemm: &mut Gemm, p: &Product, exact: Shape, bucket: Shape) -> Result<(), CublasError> {
    if let Some(algorithm) = tune::algorithm(cuda, gemm, p, exact, bucket)? {
        return run(cuda, gemm, p, exact, &algorithm, 1.0);
    }
    // The exact shape is known if the bucket's algorithm was refused before.
    let shape = if gemm.algorithms.contains_key(&exact) { exact } else { bucket };
    let algorithm = gemm.algorithm(shape, p);
    match algorithm.and_then(|algorithm| run(cuda, gemm, p, exact, &algorithm, 1.0)) {
        Err(e) if is_refusal(&e) && shape != exact => {
            cuda.refused_products.update(|count| count + 1);
            let algorithm = gemm.algorithm(exact, p)?;
            run(cuda, gemm, p, exact, &algorithm, 1.0)
        }
        done => done,
    }
}

/// Whether the library does not support what was asked for, and nothing has failed.
pub fn is_refusal(e: &CublasError) -> bool {
    matches!(e.0, Status::CUBLAS_STATUS_NOT_SUPPORTED | Status::CUBLAS_STATUS_INVALID_VALUE)
}

/// Runs a product with an algorithm: `D = alpha op(A) op(B) + bias (+ D)`.
pub fn run(cuda: &Cuda, gemm: &Gemm, p: &Product, shape: Shape, algorithm: &Algorithm, alpha: f32) -> Result<(), CublasError> {
    let (description, matrices) = (Description::of(p, shape.tf32)?, Matrices::new(p)?);
    let beta = if p.add { 1f32 } else { 0f32 };
    let scalar = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
    // SAFETY: the addresses hold matrices of these shapes; descriptors live to the end of the call, which copies them.
    unsafe {
        result::matmul(
            gemm.handle,
            description.0,
            scalar(&alpha),
            scalar(&beta),
            p.a as *const c_void,
            matrices.a.0,
            p.b as *const c_void,
            matrices.b.0,
            p.d as *const c_void,
            matrices.d.0,
            p.d as *mut c_void,
            matrices.d.0,
            algorithm,
            cuda.arena().scratch() as *mut c_void,
            SCRATCH,
            cuda.stream().cu_stream().cast(),
        )
    }
}

/// cublasOperation_t: N is 0, T is 1.
fn operation(transpose: bool) -> i32 {
    i32::from(transpose)
}

fn data_type(dtype: DType) -> sys::cudaDataType_t {
    match dtype {
        DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        DType::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::F64 | DType::I32 => panic!("no product of {dtype:?}"),
    }
}

/// A description of a product.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn of(p: &Product, tf32: bool) -> Result<Description, CublasError> {
        use sys::cublasComputeType_t::*;
        let compute = if tf32 { CUBLAS_COMPUTE_32F_FAST_TF32 } else { CUBLAS_COMPUTE_32F };
        let mut description = Description(result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F)?);
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &operation(p.transpose_a))?;
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &operation(p.transpose_b))?;
        if p.bias != 0 {
            description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &data_type(p.output))?;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p.bias)?;
        }
        Ok(description)
    }

    fn set<T>(&mut self, attribute: Attribute, value: &T) -> Result<(), CublasError> {
        let pointer = std::ptr::from_ref(value).cast();
        // SAFETY: the value is copied.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, pointer, size_of::<T>()) }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made above.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// Constraints on the choice of an algorithm.
struct Choice(sys::cublasLtMatmulPreference_t);

impl Choice {
    fn new() -> Result<Choice, CublasError> {
        result::create_matmul_pref().map(Choice)
    }

    fn set<T>(&self, attribute: Preference, value: &T) -> Result<(), CublasError> {
        let pointer = std::ptr::from_ref(value).cast();
        // SAFETY: the value is copied.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, pointer, size_of::<T>()) }
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        // SAFETY: made above.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// The layouts of A, B and D in memory.
struct Matrices {
    a: Matrix,
    b: Matrix,
    d: Matrix,
}

struct Matrix(sys::cublasLtMatrixLayout_t);

impl Matrices {
    fn new(p: &Product) -> Result<Matrices, CublasError> {
        let matrix = |dtype, transposed: bool, (rows, columns): (usize, usize), ld: usize| {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            let made = result::create_matrix_layout(data_type(dtype), rows as u64, columns as u64, ld as i64);
            made.map(Matrix)
        };
        Ok(Matrices {
            a: matrix(p.input, p.transpose_a, (p.m, p.k), p.lda)?,
            b: matrix(p.input, p.transpose_b, (p.k, p.n), p.ldb)?,
            d: matrix(p.output, false, (p.m, p.n), p.ldd)?,
        })
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        // SAFETY: made above.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}
