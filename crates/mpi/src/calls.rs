//! Calls into an MPI library through one of the three binary interfaces (ABIs) of MPI.
//!
//! Functions have the same names and arguments in all three; handles differ:
//!
//! | interface | handles | recognised by |
//! |---|---|---|
//! | Open MPI's | addresses of exported objects | the object `ompi_mpi_comm_world` |
//! | MPI 5.0's standard | pointers with small constants | MPI_Abi_get_version: major version ≥ 1 |
//! | MPICH's family | C integers | neither of the other two |
//!
//! MPI only moves values; the caller sums them, in its own order. Counts are C integers, so f32
//! values are sent as MPI_FLOAT: one call can then carry four times as many bytes as with MPI_BYTE.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

#[cfg(unix)]
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
#[cfg(windows)]
use libloading::os::windows::Library;

use crate::{Error, Result};

/// Maximum length of an error text in bytes, in any implementation (the standard's
/// MPI_MAX_ERROR_STRING).
const ERROR_TEXT: usize = 512;

/// Element type of a message.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    Byte,
    Float,
}

impl Unit {
    pub fn bytes(self) -> usize {
        match self {
            Unit::Byte => 1,
            Unit::Float => size_of::<f32>(),
        }
    }
}

/// Operations on the processes of a job. All ranks make the same collective calls in the same
/// order. Lengths count units; their sum is the length of the buffer that they divide.
pub trait Calls {
    /// Returns this process's rank and the number of processes.
    fn place(&self) -> Result<(usize, usize)>;
    /// Gathers `sent` of every rank into `received` on all ranks, in rank order.
    fn all_gather(&self, unit: Unit, sent: &[u8], received: &mut [u8], lengths: &[c_int]) -> Result<()>;
    /// Sends the first `sent_lengths[0]` units to rank 0, the next `sent_lengths[1]` to rank 1, and
    /// so on. Puts the `lengths[r]` units that each rank r sends to this one into `received`, in
    /// rank order.
    fn all_to_all(
        &self,
        unit: Unit,
        sent: &[u8],
        sent_lengths: &[c_int],
        received: &mut [u8],
        lengths: &[c_int],
    ) -> Result<()>;
    /// Ends all processes of the job.
    fn abort(&self, code: c_int);
    fn finish(&self) -> Result<()>;
}

type Init = unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int) -> c_int;
type Exchange<H> = unsafe extern "C" fn(
    *const c_void,
    *const c_int,
    *const c_int,
    H,
    *mut c_void,
    *const c_int,
    *const c_int,
    H,
    H,
) -> c_int;
type Gather<H> =
    unsafe extern "C" fn(*const c_void, c_int, H, *mut c_void, *const c_int, *const c_int, H, H) -> c_int;

/// Functions and handles of a loaded library, with handles of type `H`.
struct Functions<H> {
    world: H,
    units: [H; 2],
    rank: unsafe extern "C" fn(H, *mut c_int) -> c_int,
    size: unsafe extern "C" fn(H, *mut c_int) -> c_int,
    gather: Gather<H>,
    exchange: Exchange<H>,
    abort: unsafe extern "C" fn(H, c_int) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
    error_text: unsafe extern "C" fn(c_int, *mut c_char, *mut c_int) -> c_int,
}

/// Constants of an interface: the handles used here, and the value of MPI_THREAD_FUNNELED.
struct Constants<H> {
    world: H,
    /// MPI_BYTE and MPI_FLOAT, indexed by [`Unit`].
    units: [H; 2],
    return_errors: H,
    funneled: c_int,
}

/// Why an MPI library could not be started.
#[derive(Debug)]
pub enum StartError {
    /// The library could not be loaded, for this reason; another one may be tried.
    NotLoaded(String),
    /// The library was loaded, but cannot be used.
    Unusable(Error),
}

/// Loads a library and initialises MPI on the calling thread, the only one that may call MPI from
/// then on.
///
/// # Errors
/// The library cannot be loaded or cannot be used.
pub fn start(path: &Path) -> std::result::Result<Box<dyn Calls>, StartError> {
    // SAFETY: loading runs the library's initialisers; it is an MPI library that the user installed
    // or named.
    let library = unsafe {
        // RTLD_GLOBAL: plugins of Open MPI and MPICH resolve the library's symbols in the global
        // scope.
        #[cfg(unix)]
        let library = Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL);
        #[cfg(windows)]
        let library = Library::new(path);
        library
    };
    let library =
        library.map_err(|error| StartError::NotLoaded(format!("{}: {}", path.display(), reason(&error))))?;
    let name = path.display().to_string();
    functions(library, name).map_err(StartError::Unusable)
}

/// Returns the dynamic loader's message without the path that it begins with.
fn reason(error: &libloading::Error) -> String {
    let text = match error {
        libloading::Error::DlOpen { source, .. } => source.to_string(),
        other => other.to_string(),
    };
    text.split_once(": ").map_or(text.clone(), |(_, reason)| reason.to_string())
}

fn functions(library: Library, name: String) -> Result<Box<dyn Calls>> {
    // Leaked because a library that has initialised MPI cannot be unloaded.
    let library: &'static Library = Box::leak(Box::new(library));
    type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    // SAFETY: `Version` is the function's type in MPI 5.0.
    let version = unsafe { symbol::<Version>(library, &name, "MPI_Abi_get_version") };
    let standard = version.is_ok_and(|version| {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the function may be called before MPI is initialised.
        unsafe { version(&mut major, &mut minor) };
        major >= 1
    });
    if let Ok(world) = object(library, &name, "ompi_mpi_comm_world") {
        let constants = Constants {
            world,
            units: [object(library, &name, "ompi_mpi_byte")?, object(library, &name, "ompi_mpi_float")?],
            return_errors: object(library, &name, "ompi_mpi_errors_return")?,
            funneled: 1,
        };
        // SAFETY: only Open MPI exports these objects, which are its handles.
        return Ok(Box::new(unsafe { Functions::started(library, &name, constants) }?));
    }
    if standard {
        let handle = |number: usize| ptr::without_provenance_mut::<c_void>(number);
        let constants = Constants {
            world: handle(0x101),
            units: [handle(0x247), handle(0x210)],
            return_errors: handle(0x143),
            funneled: 1024,
        };
        // SAFETY: the library says that it has the standard's ABI.
        return Ok(Box::new(unsafe { Functions::started(library, &name, constants) }?));
    }
    let constants = Constants::<c_int> {
        world: 0x4400_0000,
        units: [0x4c00_010d, 0x4c00_040a],
        return_errors: 0x5400_0001,
        funneled: 1,
    };
    // SAFETY: libraries with neither of the other ABIs have MPICH's.
    Ok(Box::new(unsafe { Functions::started(library, &name, constants) }?))
}

/// Looks up a function of the library.
///
/// # Safety
/// `T` must be the function's type.
unsafe fn symbol<T: Copy>(library: &Library, name: &str, function: &str) -> Result<T> {
    // SAFETY: the caller names the function's type.
    let found = unsafe { library.get::<T>(function.as_bytes()) };
    found
        .map(|found| *found)
        .map_err(|_| Error::Symbol { library: name.to_string(), problem: format!("it has no {function}") })
}

/// Returns the address of an exported object, which is a handle of Open MPI.
fn object(library: &Library, name: &str, object: &str) -> Result<*mut c_void> {
    // SAFETY: only the symbol's address is used; nothing is read through it.
    let found = unsafe { library.get::<*mut c_void>(object.as_bytes()) };
    found
        .map(|found| found.as_raw_ptr())
        .map_err(|_| Error::Symbol { library: name.to_string(), problem: format!("it has no {object}") })
}

impl<H: Copy + 'static> Functions<H> {
    /// Initialises MPI for calls from this thread, with errors returned instead of ending the
    /// process.
    ///
    /// # Safety
    /// `constants`, and with them the type of handles, must be those of the library's ABI.
    unsafe fn started(library: &'static Library, name: &str, constants: Constants<H>) -> Result<Self> {
        let Constants { world, units, return_errors, funneled } = constants;
        // SAFETY: the fields have the types that the MPI standard gives these functions, with the
        // handles of the library's ABI.
        let functions = unsafe {
            Functions {
                world,
                units,
                rank: symbol(library, name, "MPI_Comm_rank")?,
                size: symbol(library, name, "MPI_Comm_size")?,
                gather: symbol(library, name, "MPI_Allgatherv")?,
                exchange: symbol(library, name, "MPI_Alltoallv")?,
                abort: symbol(library, name, "MPI_Abort")?,
                finalize: symbol(library, name, "MPI_Finalize")?,
                error_text: symbol(library, name, "MPI_Error_string")?,
            }
        };
        // SAFETY: as above.
        let init: Init = unsafe { symbol(library, name, "MPI_Init_thread") }?;
        type SetHandler<H> = unsafe extern "C" fn(H, H) -> c_int;
        // SAFETY: as above.
        let set_handler: SetHandler<H> = unsafe { symbol(library, name, "MPI_Comm_set_errhandler") }?;
        let mut provided = 0;
        // SAFETY: MPI accepts null for argc and argv, and has not been initialised before.
        let code = unsafe { init(ptr::null_mut(), ptr::null_mut(), funneled, &mut provided) };
        functions.check("MPI_Init_thread", code)?;
        if provided < funneled {
            return Err(Error::Symbol {
                library: name.to_string(),
                problem: "it does not support programs with threads (MPI_THREAD_FUNNELED)".to_string(),
            });
        }
        // SAFETY: both handles are this library's, and MPI is initialised.
        let code = unsafe { set_handler(world, return_errors) };
        functions.check("MPI_Comm_set_errhandler", code)?;
        Ok(functions)
    }

    fn check(&self, function: &'static str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let mut text: [c_char; ERROR_TEXT + 1] = [0; ERROR_TEXT + 1];
        let mut length = 0;
        // SAFETY: `text` has room for the longest error text of any implementation and its final
        // NUL.
        let known = unsafe { (self.error_text)(code, text.as_mut_ptr(), &mut length) } == 0;
        // SAFETY: `text` is one byte longer than any error text and was zeroed, so it ends in NUL.
        let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned();
        Err(Error::Call { function, message: if known { text } else { format!("error {code}") } })
    }
}

/// Returns the offset of each rank's part, in units.
fn starts(lengths: &[c_int]) -> Vec<c_int> {
    lengths.iter().scan(0, |end, &length| Some(std::mem::replace(end, *end + length))).collect()
}

/// Addresses passed for empty buffers, one for sending and one for receiving. Rust's pointers of
/// empty slices are small integers, and so is MPI_IN_PLACE in Open MPI and the standard.
static EMPTY: [u64; 2] = [0; 2];

/// Returns the address of a send buffer.
fn start_of(buffer: &[u8]) -> *const c_void {
    if buffer.is_empty() { (&raw const EMPTY[0]).cast() } else { buffer.as_ptr().cast() }
}

/// Returns the address of a receive buffer.
fn start_of_mut(buffer: &mut [u8]) -> *mut c_void {
    if buffer.is_empty() { (&raw const EMPTY[1]).cast_mut().cast() } else { buffer.as_mut_ptr().cast() }
}

// SAFETY, for all calls below: handles and functions belong to the same library; pointers are those
// of slices whose lengths the caller (world.rs) has matched to the counts, which it has checked to
// fit a C integer; all calls are made by the thread that initialised MPI; and no call keeps a
// pointer after it returns.
impl<H: Copy + 'static> Calls for Functions<H> {
    fn place(&self) -> Result<(usize, usize)> {
        let (mut rank, mut size) = (0, 0);
        self.check("MPI_Comm_rank", unsafe { (self.rank)(self.world, &mut rank) })?;
        self.check("MPI_Comm_size", unsafe { (self.size)(self.world, &mut size) })?;
        Ok((rank as usize, size as usize))
    }

    fn all_gather(&self, unit: Unit, sent: &[u8], received: &mut [u8], lengths: &[c_int]) -> Result<()> {
        let (kind, starts) = (self.units[unit as usize], starts(lengths));
        let length = (sent.len() / unit.bytes()) as c_int;
        let (from, to) = (start_of(sent), start_of_mut(received));
        let (lengths, starts) = (lengths.as_ptr(), starts.as_ptr());
        let code = unsafe { (self.gather)(from, length, kind, to, lengths, starts, kind, self.world) };
        self.check("MPI_Allgatherv", code)
    }

    fn all_to_all(
        &self,
        unit: Unit,
        sent: &[u8],
        sent_lengths: &[c_int],
        received: &mut [u8],
        lengths: &[c_int],
    ) -> Result<()> {
        let (kind, sent_starts, starts) = (self.units[unit as usize], starts(sent_lengths), starts(lengths));
        let (from, to) = (start_of(sent), start_of_mut(received));
        let (sent_lengths, sent_starts) = (sent_lengths.as_ptr(), sent_starts.as_ptr());
        let (lengths, starts) = (lengths.as_ptr(), starts.as_ptr());
        let code = unsafe {
            (self.exchange)(from, sent_lengths, sent_starts, kind, to, lengths, starts, kind, self.world)
        };
        self.check("MPI_Alltoallv", code)
    }

    fn abort(&self, code: c_int) {
        unsafe { (self.abort)(self.world, code) };
    }

    fn finish(&self) -> Result<()> {
        self.check("MPI_Finalize", unsafe { (self.finalize)() })
    }
}
