//! libmujoco, opened at run time: nothing of MuJoCo is needed to build.
//!
//! Everything unsafe of this family is in this file. States and controls go through MuJoCo's
//! exported functions. A few arrays have none and are read from its structures, whose layout
//! changes between versions: the offsets known here are for the versions listed in [`LAYOUTS`],
//! other versions are refused, and before first use every offset is checked on a small model
//! whose quantities are known by hand ([`Library::verify`]).

use super::installation::{INSTALL, Installation, Overrides};
use crate::{InvalidInput, Result, invalid};
use anyhow::{Context, bail, ensure};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, null};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// MuJoCo's `mjModel`: the compiled model, constant while it is simulated.
#[repr(C)]
struct RawModel(c_void);

/// MuJoCo's `mjData`: the state of one simulation and everything computed from it.
#[repr(C)]
struct RawData(c_void);

/// MuJoCo's `mjSpec`: a model that was parsed and not yet compiled.
#[repr(C)]
struct RawSpec(c_void);

/// Which parts of the state `mj_getState` and `mj_setState` copy (`mjtState`, MuJoCo 4.0).
mod part {
    use std::ffi::c_int;
    pub const TIME: c_int = 1 << 0;
    pub const QPOS: c_int = 1 << 1;
    pub const QVEL: c_int = 1 << 2;
    pub const CTRL: c_int = 1 << 6;
    pub const XFRC_APPLIED: c_int = 1 << 8;
    /// Everything that the next step depends on (`mjSTATE_INTEGRATION`, bits 0 to 14).
    pub const INTEGRATION: c_int = (1 << 15) - 1;
}

/// Shapes of geoms (`mjtGeom`) that the models of the tasks are made of.
pub(super) mod shape {
    /// The ground.
    pub const PLANE: i32 = 0;
    /// Size: radius.
    pub const SPHERE: i32 = 2;
    /// Size: radius, half the length along z without the caps.
    pub const CAPSULE: i32 = 3;
    /// Size: radius, half the length along z.
    pub const CYLINDER: i32 = 5;
}

/// `mjOBJ_BODY`: the kind of object that `mj_name2id` looks for.
const OBJECT_BODY: c_int = 1;

/// Offsets in bytes of the arrays read from `mjModel` and `mjData`, as `offsetof` gives them for
/// the headers of a version.
#[derive(Clone, Copy)]
struct Layout {
    // mjModel
    ngeom: usize,              // a size
    nsite: usize,              // a size
    body_mass: usize,          // [nbody]
    geom_type: usize,          // [ngeom] of int
    geom_bodyid: usize,        // [ngeom] of int
    geom_size: usize,          // [ngeom, 3]
    actuator_ctrlrange: usize, // [nu, 2]
    // mjData
    xpos: usize,            // [nbody, 3]
    xipos: usize,           // [nbody, 3]
    geom_xpos: usize,       // [ngeom, 3]
    geom_xmat: usize,       // [ngeom, 9]
    site_xpos: usize,       // [nsite, 3]
    cinert: usize,          // [nbody, 10]
    cvel: usize,            // [nbody, 6]
    qfrc_actuator: usize,   // [nv]
    qfrc_constraint: usize, // [nv]
    cfrc_ext: usize,        // [nbody, 6]
}

/// MuJoCo 4.0.
const LAYOUT_4_0: Layout = Layout {
    ngeom: 136,
    nsite: 144,
    body_mass: 1944,
    geom_type: 2432,
    geom_bodyid: 2464,
    geom_size: 2552,
    actuator_ctrlrange: 5016,
    xpos: 160_848,
    xipos: 160_872,
    geom_xpos: 160_912,
    geom_xmat: 160_928,
    site_xpos: 160_936,
    cinert: 161_008,
    cvel: 161_296,
    qfrc_actuator: 161_424,
    qfrc_constraint: 161_448,
    cfrc_ext: 161_480,
};

/// The layouts known, by what `mj_version` returns.
const LAYOUTS: [(c_int, Layout); 2] = [(4_000_000, LAYOUT_4_0), (4_000_001, LAYOUT_4_0)];

/// An open libmujoco of a known version.
pub(super) struct Library {
    layout: Layout,
    models: PathBuf,
    compiled: Mutex<HashMap<&'static str, Arc<Model>>>,
    load_xml: unsafe extern "C" fn(*const c_char, *const c_void, *mut c_char, c_int) -> *mut RawModel,
    parse_xml_string: unsafe extern "C" fn(*const c_char, *const c_void, *mut c_char, c_int) -> *mut RawSpec,
    compile: unsafe extern "C" fn(*mut RawSpec, *const c_void) -> *mut RawModel,
    delete_spec: unsafe extern "C" fn(*mut RawSpec),
    delete_model: unsafe extern "C" fn(*mut RawModel),
    name_to_id: unsafe extern "C" fn(*const RawModel, c_int, *const c_char) -> c_int,
    make_data: unsafe extern "C" fn(*const RawModel) -> *mut RawData,
    delete_data: unsafe extern "C" fn(*mut RawData),
    reset_data: unsafe extern "C" fn(*const RawModel, *mut RawData),
    state_size: unsafe extern "C" fn(*const RawModel, c_int) -> c_int,
    get_state: unsafe extern "C" fn(*const RawModel, *const RawData, *mut f64, c_int),
    set_state: unsafe extern "C" fn(*const RawModel, *mut RawData, *const f64, c_int),
    forward: unsafe extern "C" fn(*const RawModel, *mut RawData),
    step: unsafe extern "C" fn(*const RawModel, *mut RawData),
    rne_post_constraint: unsafe extern "C" fn(*const RawModel, *mut RawData),
    /// Keeps the functions above loaded.
    _handle: libloading::Library,
}

/// What opening a file came to.
enum Opened {
    Known(&'static Library),
    /// A version whose layout is not known.
    Unknown(String),
}

thread_local! {
    /// Whether this thread is compiling a model.
    static COMPILING: Cell<bool> = const { Cell::new(false) };
}

/// MuJoCo's warnings (an unstable simulation, say) would go to a log file in the working folder;
/// the first goes to standard error instead, and those after it, which repeat it, nowhere. What
/// it says about a model (something in it is deprecated) is for the model's author.
unsafe extern "C" fn warn(message: *const c_char) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !message.is_null() && !COMPILING.get() && !WARNED.swap(true, Ordering::Relaxed) {
        // SAFETY: MuJoCo passes a string that ends with a zero byte and lives during this call.
        let message = unsafe { CStr::from_ptr(message) };
        // `eprintln` would panic at a closed pipe, and no panic may cross MuJoCo's frames.
        let _ = writeln!(std::io::stderr(), "MuJoCo: {}", message.to_string_lossy());
    }
}

/// An error in the engine ends the program, as it would without this: MuJoCo says that its error
/// function does not return, and neither unwinding nor a jump may cross its frames. But it ends with
/// the line and the code that every other error ends with, and not at a prompt or with a log file in
/// the working folder.
unsafe extern "C" fn fail(message: *const c_char) {
    let message = match message.is_null() {
        true => "of an unknown kind".into(),
        // SAFETY: MuJoCo passes a string that ends with a zero byte and lives during this call.
        false => unsafe { CStr::from_ptr(message) }.to_string_lossy(),
    };
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    // Where standard error is closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "error: MuJoCo's engine: {line}");
    std::process::exit(1);
}

impl Library {
    /// The library of this process, opened at the first call.
    ///
    /// # Errors
    /// An [`InvalidInput`] where something is not installed or its version is not known, saying
    /// what to do; another error where a known version does not behave as it should.
    pub fn get() -> Result<&'static Self> {
        static LIBRARY: OnceLock<Result<&'static Library>> = OnceLock::new();
        match LIBRARY.get_or_init(|| Self::open(Installation::find(&Overrides::from_env())?)) {
            Ok(library) => Ok(library),
            Err(error) => match error.downcast_ref::<InvalidInput>() {
                Some(missing) => Err(missing.clone().into()),
                None => bail!("{error:#}"),
            },
        }
    }

    /// Opens the first candidate of a known version.
    fn open(installation: Installation) -> Result<&'static Self> {
        let mut refused = Vec::new();
        for path in &installation.libraries {
            match Self::open_file(path, installation.models.clone())? {
                Opened::Known(library) => {
                    library.verify().with_context(|| {
                        format!("{}: this build of libmujoco differs from the one known", path.display())
                    })?;
                    return Ok(library);
                }
                Opened::Unknown(version) => refused.push(format!("{} is version {version}", path.display())),
            }
        }
        invalid(format!(
            "MuJoCo tasks: libmujoco 4.0.0 or 4.0.1 is needed, but {}; install it with: {INSTALL}",
            refused.join(", and ")
        ))
    }

    /// Opens one file; gives its version instead if that is not known.
    fn open_file(path: &Path, models: PathBuf) -> Result<Opened> {
        // SAFETY: loading runs the library's initialisers; the file is the one that MuJoCo's
        // package or the user names as libmujoco.
        let handle = match unsafe { libloading::Library::new(path) } {
            Ok(handle) => handle,
            Err(error) => {
                let (path, reason) = (path.display(), anyhow::Error::from(error));
                return invalid(format!(
                    "MuJoCo tasks: {path} cannot be opened as a library ({reason:#}); install it with: {INSTALL}"
                ));
            }
        };
        /// The function of this name; its type is that of the field it is stored in.
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the fields' types are MuJoCo's declarations in mujoco.h of the versions
                // in `LAYOUTS`, and the library is not unloaded while they are in use.
                match unsafe { handle.get($name) } {
                    Ok(symbol) => *symbol,
                    Err(_) => {
                        return invalid(format!("{}: not libmujoco, it has no {}", path.display(), $name))
                    }
                }
            };
        }
        let version: unsafe extern "C" fn() -> c_int = function!("mj_version");
        // SAFETY: `int mj_version(void)` in every version.
        let version = unsafe { version() };
        let Some(&(_, layout)) = LAYOUTS.iter().find(|(known, _)| *known == version) else {
            let text: unsafe extern "C" fn() -> *const c_char = function!("mj_versionString");
            // SAFETY: `const char* mj_versionString(void)` returns a static string.
            let version = unsafe { CStr::from_ptr(text()) };
            return Ok(Opened::Unknown(version.to_string_lossy().into_owned()));
        };
        let user_warning: *mut Option<unsafe extern "C" fn(*const c_char)> = function!("mju_user_warning");
        let user_error: *mut Option<unsafe extern "C" fn(*const c_char)> = function!("mju_user_error");
        // SAFETY: global variables of this type, written once, before any simulation exists.
        unsafe {
            *user_warning = Some(warn);
            *user_error = Some(fail);
        }
        // Never unloaded: simulations and threads may use it until the process ends.
        Ok(Opened::Known(Box::leak(Box::new(Self {
            layout,
            models,
            compiled: Mutex::default(),
            load_xml: function!("mj_loadXML"),
            parse_xml_string: function!("mj_parseXMLString"),
            compile: function!("mj_compile"),
            delete_spec: function!("mj_deleteSpec"),
            delete_model: function!("mj_deleteModel"),
            name_to_id: function!("mj_name2id"),
            make_data: function!("mj_makeData"),
            delete_data: function!("mj_deleteData"),
            reset_data: function!("mj_resetData"),
            state_size: function!("mj_stateSize"),
            get_state: function!("mj_getState"),
            set_state: function!("mj_setState"),
            forward: function!("mj_forward"),
            step: function!("mj_step"),
            rne_post_constraint: function!("mj_rnePostConstraint"),
            _handle: handle,
        }))))
    }

    /// The model in `file` of Gymnasium's models, compiled at the first call and then shared.
    ///
    /// # Errors
    /// A file that is missing or that MuJoCo refuses.
    pub fn model(&'static self, file: &'static str) -> Result<Arc<Model>> {
        let Ok(mut compiled) = self.compiled.lock() else {
            bail!("a thread panicked while it loaded a model")
        };
        if let Some(model) = compiled.get(file) {
            return Ok(model.clone());
        }
        let path = self.models.join(file);
        if !path.is_file() {
            return invalid(format!(
                "MuJoCo tasks: there is no model {}; install it with: {INSTALL}",
                path.display()
            ));
        }
        let name = CString::new(path.to_string_lossy().as_bytes())?;
        let mut error: [c_char; 1000] = [0; 1000];
        COMPILING.set(true);
        // SAFETY: the name ends with a zero byte, no virtual file system is given, and the length
        // of the error buffer is its own.
        let raw = unsafe { (self.load_xml)(name.as_ptr(), null(), error.as_mut_ptr(), error.len() as c_int) };
        COMPILING.set(false);
        let Some(raw) = NonNull::new(raw) else { bail!("{}: {}", path.display(), text(&error)) };
        // SAFETY: this library just compiled the model and nothing else holds it.
        let model = Arc::new(unsafe { Model::new(self, raw)? });
        compiled.insert(file, model.clone());
        Ok(model)
    }

    /// Checks every offset, and every state mask but INTEGRATION, on a model whose quantities are known by hand.
    ///
    /// A block of 3 kg slides along x against dry friction of 5 N and a damper, pushed by a motor
    /// whose gear makes 8 N of the control 2, and from outside by 7 N along y.
    fn verify(&'static self) -> Result<()> {
        const MODEL: &CStr = c"<mujoco>
            <option timestep='0.125' gravity='0 0 0'/>
            <default><geom contype='0' conaffinity='0'/></default>
            <worldbody>
                <geom type='plane' size='1 2 3'/>
                <body name='block' pos='0 0 2'>
                    <joint name='slide' type='slide' axis='1 0 0' damping='2' frictionloss='5'/>
                    <inertial pos='0.25 0 0' mass='3' diaginertia='1 1 1'/>
                    <geom type='capsule' size='0.5 0.75' pos='0 0.5 0' euler='90 0 0'/>
                    <site pos='0 0 0.5'/>
                </body>
            </worldbody>
            <actuator><motor joint='slide' ctrlrange='-7 9' gear='4'/></actuator>
        </mujoco>";
        let mut error: [c_char; 1000] = [0; 1000];
        // SAFETY: as in `model`; the specification is compiled while it exists, then deleted.
        let raw = unsafe {
            let spec =
                (self.parse_xml_string)(MODEL.as_ptr(), null(), error.as_mut_ptr(), error.len() as c_int);
            ensure!(!spec.is_null(), "{}", text(&error));
            let raw = (self.compile)(spec, null());
            (self.delete_spec)(spec);
            raw
        };
        let Some(raw) = NonNull::new(raw) else { bail!("the model that checks it cannot be compiled") };
        // SAFETY: as in `model`.
        let model = Arc::new(unsafe { Model::new(self, raw)? });
        let sizes = (model.nq, model.nv, model.nu, model.num_bodies);
        ensure!(sizes == (1, 1, 1, 2), "sizes {sizes:?}");
        let same = |name: &str, found: &[f64], expected: &[f64]| {
            let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-9;
            ensure!(
                found.len() == expected.len() && found.iter().zip(expected).all(close),
                "{name} is {found:?}, not {expected:?}"
            );
            Ok(())
        };
        same("timestep", &[model.timestep], &[0.125])?;
        ensure!(model.body("block")? == 1 && model.body("slide").is_err(), "names of bodies");
        same("body_mass", model.body_masses(), &[0.0, 3.0])?;
        same("actuator_ctrlrange", model.control_ranges().as_flattened(), &[-7.0, 9.0])?;
        ensure!((model.num_geoms, model.num_sites) == (2, 1), "ngeom and nsite");
        ensure!(model.geom_shapes() == [shape::PLANE, shape::CAPSULE], "geom_type");
        ensure!(model.geom_bodies() == [0, 1], "geom_bodyid");
        same("geom_size", &model.geom_sizes().as_flattened()[..5], &[1.0, 2.0, 3.0, 0.5, 0.75])?;

        let mut simulation = Simulation::new(model, 1, true)?;
        simulation.start(&[0.5], &[1.5]);
        let (raw_model, raw_data) = (simulation.model.raw(), simulation.data.as_ptr());
        let outside = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 7.0, 0.0, 0.0, 0.0, 0.0]; // [nbody, 6]
        // SAFETY: the model and the data belong together; the lengths are those of nu = 1 and
        // nbody = 2, checked above.
        unsafe {
            (self.set_state)(raw_model, raw_data, [2.0].as_ptr(), part::CTRL);
            (self.set_state)(raw_model, raw_data, outside.as_ptr(), part::XFRC_APPLIED);
            (self.forward)(raw_model, raw_data);
            (self.rne_post_constraint)(raw_model, raw_data);
        }
        simulation.refresh();
        same("qpos", simulation.qpos(), &[0.5])?;
        same("qvel", simulation.qvel(), &[1.5])?;
        same("xpos", &simulation.body_positions()[1], &[0.5, 0.0, 2.0])?;
        same("xipos", &simulation.mass_centers()[1], &[0.75, 0.0, 2.0])?;
        same("geom_xpos", &simulation.geom_positions()[1], &[0.5, 0.5, 2.0])?;
        let quarter_turn = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 1.0, 0.0]; // about x
        same("geom_xmat", &simulation.geom_rotations()[1], &quarter_turn)?;
        same("site_xpos", &simulation.site_positions()[0], &[0.5, 0.0, 2.5])?;
        same("cinert", &simulation.inertias()[1][9..], &[3.0])?;
        same("cvel", &simulation.velocities()[1], &[0.0, 0.0, 0.0, 1.5, 0.0, 0.0])?;
        same("qfrc_actuator", simulation.actuator_forces(), &[8.0])?;
        same("qfrc_constraint", simulation.constraint_forces(), &[-5.0])?;
        same("cfrc_ext", &simulation.contact_forces()[1], &[0.0, 0.0, 0.0, 0.0, 7.0, 0.0])
    }
}

/// The text in a buffer that MuJoCo wrote an error to, on one line.
fn text(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> = buffer.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A compiled model, shared by all simulations of it.
pub(super) struct Model {
    library: &'static Library,
    raw: NonNull<RawModel>,
    /// Positions (a quaternion counts four).
    pub nq: usize,
    /// Velocities.
    pub nv: usize,
    /// Controls.
    pub nu: usize,
    /// Bodies, the world (index 0) included.
    pub num_bodies: usize,
    num_geoms: usize,
    num_sites: usize,
    integration_size: usize,
    /// Seconds of one step of MuJoCo.
    pub timestep: f64,
    /// Positions at rest, `[nq]`.
    pub rest: Vec<f64>,
}

// SAFETY: MuJoCo takes the model as `const` wherever this file passes it and keeps what changes
// in `mjData`, so threads may share it.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: this is the only owner, and simulations hold the `Arc` that keeps it alive.
        unsafe { (self.library.delete_model)(self.raw.as_ptr()) };
    }
}

impl Model {
    /// Takes over a model.
    ///
    /// # Safety
    /// `library` compiled `raw`, and nothing else uses or deletes it.
    unsafe fn new(library: &'static Library, raw: NonNull<RawModel>) -> Result<Self> {
        // SAFETY: the model is valid by contract.
        let state_size = |part| unsafe { (library.state_size)(raw.as_ptr(), part) } as usize;
        // SAFETY: sizes are 64-bit integers in `mjModel`, at offsets that `verify` checks.
        let size = |offset| unsafe { raw.as_ptr().byte_add(offset).cast::<i64>().read() } as usize;
        let mut model = Self {
            library,
            raw,
            nq: state_size(part::QPOS),
            nv: state_size(part::QVEL),
            nu: state_size(part::CTRL),
            num_bodies: state_size(part::XFRC_APPLIED) / 6, // a force and a torque each
            num_geoms: size(library.layout.ngeom),
            num_sites: size(library.layout.nsite),
            integration_size: state_size(part::INTEGRATION),
            timestep: 0.0,
            rest: vec![0.0; state_size(part::QPOS)],
        };
        // SAFETY: the data is made for this model, the buffers are as long as the parts copied,
        // and the data is deleted once.
        unsafe {
            let data = (library.make_data)(model.raw());
            ensure!(!data.is_null(), "MuJoCo could not allocate a simulation");
            (library.get_state)(model.raw(), data, model.rest.as_mut_ptr(), part::QPOS);
            (library.step)(model.raw(), data); // from time 0 to time `timestep`
            (library.get_state)(model.raw(), data, &mut model.timestep, part::TIME);
            (library.delete_data)(data);
        }
        Ok(model)
    }

    fn raw(&self) -> *const RawModel {
        self.raw.as_ptr()
    }

    /// The array of `len` elements that the pointer at `offset` points to.
    ///
    /// # Safety
    /// `mjModel` holds a pointer to at least `len` elements of type `T` at `offset`.
    unsafe fn array<T>(&self, offset: usize, len: usize) -> &[T] {
        // SAFETY: by contract; the arrays live as long as the model and do not change.
        unsafe { slice(self.raw.as_ptr().byte_add(offset).cast(), len) }
    }

    /// Index of the body called `name`.
    ///
    /// # Errors
    /// No body has this name.
    pub fn body(&self, name: &str) -> Result<usize> {
        let text = CString::new(name)?;
        // SAFETY: the model is valid and the name ends with a zero byte.
        let index = unsafe { (self.library.name_to_id)(self.raw(), OBJECT_BODY, text.as_ptr()) };
        usize::try_from(index).ok().with_context(|| format!("the model has no body {name}"))
    }

    /// Mass of each body in kg, `[num_bodies]`.
    pub fn body_masses(&self) -> &[f64] {
        // SAFETY: `body_mass` holds a number for each body.
        unsafe { self.array(self.library.layout.body_mass, self.num_bodies) }
    }

    /// Lowest and highest value of each control, `[nu]`.
    pub fn control_ranges(&self) -> &[[f64; 2]] {
        // SAFETY: `actuator_ctrlrange` holds two numbers for each control.
        unsafe { self.array(self.library.layout.actuator_ctrlrange, self.nu) }
    }

    /// How each geom is shaped, one of [`shape`]: `[num_geoms]`.
    pub fn geom_shapes(&self) -> &[i32] {
        // SAFETY: `geom_type` holds an int for each geom.
        unsafe { self.array(self.library.layout.geom_type, self.num_geoms) }
    }

    /// The body that each geom belongs to, `[num_geoms]`.
    pub fn geom_bodies(&self) -> &[i32] {
        // SAFETY: `geom_bodyid` holds an int for each geom.
        unsafe { self.array(self.library.layout.geom_bodyid, self.num_geoms) }
    }

    /// Sizes of each geom in m, with the meaning that its shape gives them: `[num_geoms]`.
    pub fn geom_sizes(&self) -> &[[f64; 3]] {
        // SAFETY: `geom_size` holds three numbers for each geom.
        unsafe { self.array(self.library.layout.geom_size, self.num_geoms) }
    }
}

/// The array that the pointer stored at `place` points to; empty arrays may have a null pointer.
///
/// # Safety
/// A pointer to `len` elements that live and do not change for `'a` is stored at `place`.
unsafe fn slice<'a, T>(place: *const *const T, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: by contract.
    unsafe { std::slice::from_raw_parts(place.read(), len) }
}

/// One simulation of a model.
///
/// After a step MuJoCo has moved positions and velocities on, and left everything computed from
/// them (places of bodies, forces) as it was at the beginning of the step's last substep.
/// Gymnasium's observations are made of both. So what is saved and restored is the state that
/// these quantities were computed from, and restoring it computes them again; MuJoCo promises
/// the same bits from the same state (its "integration state").
pub(super) struct Simulation {
    model: Arc<Model>,
    data: NonNull<RawData>,
    frame_skip: usize,
    rne_post_constraint: bool,
    coordinates: Vec<f64>, // [nq + nv], positions then velocities
    controls: Vec<f64>,    // [nu]
    origin: Vec<f64>,      // [integration_size], what the derived quantities were computed from
    stepped: bool,         // whether a substep followed the origin, or only `mj_forward`
}

// SAFETY: `data` belongs to this simulation alone and has no tie to the thread that made it;
// `model` may be shared.
unsafe impl Send for Simulation {}

impl Drop for Simulation {
    fn drop(&mut self) {
        // SAFETY: this is the only owner.
        unsafe { (self.model.library.delete_data)(self.data.as_ptr()) };
    }
}

impl Simulation {
    /// A simulation at rest that takes `frame_skip` steps of MuJoCo for one of the environment.
    /// Without `contact_forces` those are not computed and stay 0.
    ///
    /// # Errors
    /// No memory.
    pub fn new(model: Arc<Model>, frame_skip: usize, contact_forces: bool) -> Result<Self> {
        // SAFETY: the model is valid.
        let data = unsafe { (model.library.make_data)(model.raw()) };
        let Some(data) = NonNull::new(data) else { bail!("MuJoCo could not allocate a simulation") };
        let mut simulation = Self {
            data,
            frame_skip,
            rne_post_constraint: contact_forces,
            coordinates: vec![0.0; model.nq + model.nv],
            controls: vec![0.0; model.nu],
            origin: vec![0.0; model.integration_size],
            stepped: false,
            model,
        };
        let rest = simulation.model.rest.clone();
        simulation.start(&rest, &vec![0.0; simulation.model.nv]);
        Ok(simulation)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Seconds of one step of the environment.
    pub fn dt(&self) -> f64 {
        self.model.timestep * self.frame_skip as f64
    }

    /// Steps of MuJoCo for one step of the environment.
    pub fn frame_skip(&self) -> usize {
        self.frame_skip
    }

    /// Begins anew at time 0 from positions `[nq]` and velocities `[nv]`.
    pub fn start(&mut self, qpos: &[f64], qvel: &[f64]) {
        let nq = self.model.nq;
        self.coordinates[..nq].copy_from_slice(qpos);
        self.coordinates[nq..].copy_from_slice(qvel);
        self.stepped = false;
        let (library, model, data) = (self.model.library, self.model.raw(), self.data.as_ptr());
        // SAFETY: model and data belong together; the buffers are as long as the parts copied.
        unsafe {
            (library.reset_data)(model, data);
            (library.set_state)(model, data, self.coordinates.as_ptr(), part::QPOS | part::QVEL);
            (library.get_state)(model, data, self.origin.as_mut_ptr(), part::INTEGRATION);
            (library.forward)(model, data);
        }
        self.refresh();
    }

    /// One step of the environment under the controls `action`, `[nu]`. MuJoCo itself clamps
    /// them to their range.
    pub fn advance(&mut self, action: &[f32]) {
        debug_assert_eq!(action.len(), self.controls.len());
        for (control, &a) in self.controls.iter_mut().zip(action) {
            *control = a.into();
        }
        let (library, model, data) = (self.model.library, self.model.raw(), self.data.as_ptr());
        // SAFETY: model and data belong together; the buffers are as long as the parts copied.
        unsafe {
            (library.set_state)(model, data, self.controls.as_ptr(), part::CTRL);
            for _ in 1..self.frame_skip {
                (library.step)(model, data);
            }
            (library.get_state)(model, data, self.origin.as_mut_ptr(), part::INTEGRATION);
        }
        self.stepped = true;
        self.last_substep();
    }

    /// The substep that follows the origin.
    fn last_substep(&mut self) {
        let (library, model, data) = (self.model.library, self.model.raw(), self.data.as_ptr());
        // SAFETY: model and data belong together.
        unsafe {
            (library.step)(model, data);
            // MuJoCo leaves contact forces out of a step unless a sensor needs them.
            if self.rne_post_constraint {
                (library.rne_post_constraint)(model, data);
            }
        }
        self.refresh();
    }

    /// Copies positions and velocities out of MuJoCo.
    fn refresh(&mut self) {
        let (library, model, data) = (self.model.library, self.model.raw(), self.data.as_ptr());
        // SAFETY: model and data belong together; the buffer is as long as the parts copied.
        unsafe {
            (library.get_state)(model, data, self.coordinates.as_mut_ptr(), part::QPOS | part::QVEL);
        }
    }

    /// How many numbers [`Simulation::save`] gives.
    pub fn saved_len(&self) -> usize {
        1 + self.origin.len()
    }

    /// The whole state: 1 if a substep is to follow or 0 if not, then MuJoCo's integration state
    /// (time, positions, velocities, …) before it.
    pub fn save(&self) -> Vec<f64> {
        let mut saved = Vec::with_capacity(self.saved_len());
        saved.push(f64::from(u8::from(self.stepped)));
        saved.extend_from_slice(&self.origin);
        saved
    }

    /// Returns to what [`Simulation::save`] gave.
    ///
    /// # Errors
    /// Another length, numbers that are not finite or beyond what MuJoCo simulates.
    pub fn restore(&mut self, saved: &[f64]) -> Result<()> {
        // `mjMAXVAL`: MuJoCo takes anything beyond for a simulation that went unstable.
        const LARGEST: f64 = 1e10;
        if saved.len() != self.saved_len() {
            return invalid(format!("{} numbers, not {}", saved.len(), self.saved_len()));
        }
        if saved[0] != 0.0 && saved[0] != 1.0 {
            return invalid(format!("its first number is 0 or 1, not {}", saved[0]));
        }
        if let Some(bad) = saved.iter().find(|x| !(-LARGEST..=LARGEST).contains(*x)) {
            return invalid(format!("numbers lie within {LARGEST:e} of 0, {bad} does not"));
        }
        self.stepped = saved[0] == 1.0;
        self.origin.copy_from_slice(&saved[1..]);
        let (library, model, data) = (self.model.library, self.model.raw(), self.data.as_ptr());
        // SAFETY: model and data belong together; the buffers are as long as the parts copied.
        unsafe {
            (library.reset_data)(model, data);
            (library.set_state)(model, data, self.origin.as_ptr(), part::INTEGRATION);
            (library.get_state)(model, data, self.controls.as_mut_ptr(), part::CTRL);
        }
        if self.stepped {
            self.last_substep();
        } else {
            // SAFETY: as above.
            unsafe { (library.forward)(model, data) };
            self.refresh();
        }
        Ok(())
    }

    /// The array of `len` elements that the pointer at `offset` points to.
    ///
    /// # Safety
    /// `mjData` holds a pointer to at least `len` elements of type `T` at `offset`.
    unsafe fn array<T>(&self, offset: usize, len: usize) -> &[T] {
        // SAFETY: by contract; the arrays are allocated once with the data, and only methods that
        // take `&mut self` let MuJoCo write to them.
        unsafe { slice(self.data.as_ptr().byte_add(offset).cast(), len) }
    }

    fn layout(&self) -> &'static Layout {
        &self.model.library.layout
    }

    /// Positions, `[nq]`.
    pub fn qpos(&self) -> &[f64] {
        &self.coordinates[..self.model.nq]
    }

    /// Velocities, `[nv]`.
    pub fn qvel(&self) -> &[f64] {
        &self.coordinates[self.model.nq..]
    }

    /// Controls of the last step as they were given, not clamped: `[nu]`.
    pub fn controls(&self) -> &[f64] {
        &self.controls
    }

    /// Where the frame of each body is, in m: `[num_bodies]` (`xpos`).
    pub fn body_positions(&self) -> &[[f64; 3]] {
        // SAFETY: `xpos` holds three numbers for each body.
        unsafe { self.array(self.layout().xpos, self.model.num_bodies) }
    }

    /// Where the centre of mass of each body is, in m: `[num_bodies]` (`xipos`).
    pub fn mass_centers(&self) -> &[[f64; 3]] {
        // SAFETY: `xipos` holds three numbers for each body.
        unsafe { self.array(self.layout().xipos, self.model.num_bodies) }
    }

    /// Where each site is, in m (`site_xpos`).
    pub fn site_positions(&self) -> &[[f64; 3]] {
        // SAFETY: `site_xpos` holds three numbers for each site.
        unsafe { self.array(self.layout().site_xpos, self.model.num_sites) }
    }

    /// Where the centre of each geom is, in m (`geom_xpos`).
    pub fn geom_positions(&self) -> &[[f64; 3]] {
        // SAFETY: `geom_xpos` holds three numbers for each geom.
        unsafe { self.array(self.layout().geom_xpos, self.model.num_geoms) }
    }

    /// How each geom is turned, a matrix row by row whose columns are the axes (`geom_xmat`).
    pub fn geom_rotations(&self) -> &[[f64; 9]] {
        // SAFETY: `geom_xmat` holds nine numbers for each geom.
        unsafe { self.array(self.layout().geom_xmat, self.model.num_geoms) }
    }

    /// Inertia of each body about the centre of mass of its kinematic tree: six numbers of the
    /// inertia matrix, three of mass times offset, the mass. `[num_bodies]` (`cinert`).
    pub fn inertias(&self) -> &[[f64; 10]] {
        // SAFETY: `cinert` holds ten numbers for each body.
        unsafe { self.array(self.layout().cinert, self.model.num_bodies) }
    }

    /// Velocity of each body, angular then linear, at the centre of mass of its kinematic tree:
    /// `[num_bodies]` (`cvel`).
    pub fn velocities(&self) -> &[[f64; 6]] {
        // SAFETY: `cvel` holds six numbers for each body.
        unsafe { self.array(self.layout().cvel, self.model.num_bodies) }
    }

    /// Force of the actuators along each velocity, `[nv]` (`qfrc_actuator`).
    pub fn actuator_forces(&self) -> &[f64] {
        // SAFETY: `qfrc_actuator` holds a number for each velocity.
        unsafe { self.array(self.layout().qfrc_actuator, self.model.nv) }
    }

    /// Force of contacts, limits and friction along each velocity, `[nv]` (`qfrc_constraint`).
    pub fn constraint_forces(&self) -> &[f64] {
        // SAFETY: `qfrc_constraint` holds a number for each velocity.
        unsafe { self.array(self.layout().qfrc_constraint, self.model.nv) }
    }

    /// Torque and force that each body feels from contacts, `[num_bodies]` (`cfrc_ext`). 0 right
    /// after a start, and always in a simulation made without contact forces.
    pub fn contact_forces(&self) -> &[[f64; 6]] {
        // SAFETY: `cfrc_ext` holds six numbers for each body.
        unsafe { self.array(self.layout().cfrc_ext, self.model.num_bodies) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not a test: a program that makes an error in the engine.
    #[test]
    #[ignore = "a program for another test"]
    fn a_program_with_an_error_in_the_engine() {
        let model = Library::get().unwrap().model("hopper.xml").unwrap();
        // SAFETY: a model and a number; MuJoCo refuses a part that does not exist.
        unsafe { (model.library.state_size)(model.raw.as_ptr(), -1) };
        println!("it went on");
    }

    #[test]
    fn an_error_in_the_engine_ends_the_program_with_one_line() {
        if Library::get().is_err() {
            let _ = writeln!(std::io::stderr(), "SKIPPED: MuJoCo is not installed"); // `tests.rs` refuses that where it must not be
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let name = "mujoco::library::tests::a_program_with_an_error_in_the_engine";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--ignored", "--nocapture"])
            .current_dir(dir.path())
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let says = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{says}");
        assert!(says.starts_with("error: MuJoCo's engine: "), "{says}");
        assert_eq!(says.lines().count(), 1, "{says}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("it went on"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a log file was left behind");
    }
}
