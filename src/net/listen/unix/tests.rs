use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("resound-claim-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn count(&self) -> usize {
        fs::read_dir(&self.0).unwrap().count()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_lock_is_had_by_one_and_leaves_nothing() {
    let folder = Folder::new("lock");
    let path = folder.0.join("lock");
    let lock = Lock::try_take(&path).unwrap().expect("nobody has it");
    assert!(Lock::try_take(&path).unwrap().is_none());
    assert!(Lock::is_held(&path));
    drop(lock);
    assert_eq!(folder.count(), 0);
    assert!(!Lock::is_held(&path));
}

#[test]
fn a_lock_on_a_file_that_was_removed_locks_nothing() {
    let folder = Folder::new("removed");
    let path = folder.0.join("lock");
    let old = Lock::try_take(&path).unwrap().unwrap();
    fs::remove_file(&path).unwrap();
    let new = Lock::try_take(&path).unwrap().expect("it is another file");
    drop(old);
    assert!(Lock::is_held(&path), "the old one does not remove the new one's file");
    drop(new);
}

#[test]
fn somebody_elses_file_is_no_lock() {
    let folder = Folder::new("foreign");
    let path = folder.0.join("s");
    let lock = folder.0.join("s.lock");
    fs::write(&lock, "precious").unwrap();
    let error = listen(&path, 16).unwrap_err().to_string();
    assert!(error.contains("s.lock") && error.contains("not ours"), "{error}");
    assert_eq!(fs::read_to_string(&lock).unwrap(), "precious");
    fs::remove_file(&lock).unwrap();
    std::os::unix::fs::symlink("elsewhere", &lock).unwrap();
    assert!(listen(&path, 16).is_err());
    assert_eq!(folder.count(), 1);
}

#[test]
fn a_socket_that_was_replaced_by_force_is_not_removed() {
    let folder = Folder::new("force");
    let path = folder.0.join("s");
    let (socket, claim) = listen(&path, 16).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    drop((claim, socket));
    assert_eq!((folder.count(), fs::read_to_string(&path).unwrap().as_str()), (1, "precious"));
}

#[test]
fn a_successor_that_waits_has_the_name_before_the_claim_is_given_up() {
    let folder = Folder::new("successor");
    let path = folder.0.join("s");
    let (old, claim) = listen(&path, 16).unwrap();
    thread::scope(|scope| {
        let successor = scope.spawn(|| listen(&path, 16).unwrap());
        while !Lock::is_held(&folder.0.join("s.next")) {
            thread::yield_now();
        }
        let before = Identity::at(&path).unwrap();
        drop(claim);
        assert_ne!(Identity::at(&path).unwrap(), before, "the old listener is still open");
        drop(old);
        let (new, claim) = successor.join().unwrap();
        Socket::new(Domain::UNIX, Type::STREAM, None)
            .unwrap()
            .connect(&SockAddr::unix(&path).unwrap())
            .unwrap();
        drop((claim, new));
    });
    assert_eq!(folder.count(), 0);
}

#[test]
fn only_who_handed_over_is_replaced_while_it_listens() {
    let folder = Folder::new("handed");
    let path = folder.0.join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let occupant = |handed_over| Occupant::of(&path, handed_over).unwrap();
    let it = Identity::at(&path).unwrap();
    assert!(matches!(occupant(None), Occupant::Listens));
    assert!(matches!(occupant(Some(Identity { inode: it.inode + 1, ..it })), Occupant::Listens));
    assert!(matches!(occupant(Some(it)), Occupant::Stale(found) if found == it));
}

#[test]
fn a_name_without_room_for_a_temporary_one_beside_it_is_too_long() {
    let folder = Folder::new("long");
    let deep = folder.0.join("x".repeat(PATH_LEN_MAX - folder.0.as_os_str().len() - 3));
    fs::create_dir(&deep).unwrap();
    let path = deep.join("s");
    assert_eq!(path.as_os_str().len(), PATH_LEN_MAX);
    assert!(listen(&path, 16).unwrap_err().to_string().contains("at most 107"));
    assert_eq!(fs::read_dir(&deep).unwrap().count(), 0);
}
