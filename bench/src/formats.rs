//! Cases of the formats: keys, slots and records.

use rkyv::util::AlignedVec;
use slotcast_engine::{
    id::{DataId, DatumKey, RegisterId, mix64},
    limits::{ALIGNMENT, SLOTS_DEFAULT},
    record::{Encoder, Instance, Record, iter},
};

use crate::Prepared;

/// A data id with names of usual length.
pub fn data_id(index: usize) -> DataId {
    let service = format!("com.example.trade.facade.OrderQueryService{index}:1.0");
    DataId::new("public", "default", &service).expect("the names are valid")
}

/// A publisher with `payload` opaque bytes.
pub fn instance(client: u64, payload: usize, fill: u8) -> Instance {
    Instance {
        client,
        name: format!("host-{client:06}.zone-a"),
        zone: "zone-a".into(),
        payload: (0..payload).map(|at| (at as u8).wrapping_mul(31).wrapping_add(fill)).collect(),
    }
}

/// Key and slot of `size` data ids.
pub fn slot_function(size: usize) -> Prepared {
    let ids: Vec<DataId> = (0..size).map(data_id).collect();
    Prepared::new(size, move || {
        ids.iter().fold(0, |check: u64, id| {
            let key = id.key();
            mix64(check ^ key.0 ^ u64::from(key.slot(SLOTS_DEFAULT).0))
        })
    })
}

/// Encodes `size` records with payloads of 128 bytes.
pub fn encode(size: usize) -> Prepared {
    let instances: Vec<Instance> = (0..size).map(|index| instance(index as u64, 128, 0)).collect();
    let mut encoder = Encoder::default();
    Prepared::new(size, move || {
        instances.iter().enumerate().fold(0, |check, (index, instance)| {
            let bytes = encoder.encode(DatumKey(7), RegisterId(index as u64), instance).expect("it is valid");
            mix64(check ^ u64::from(bytes[24]) ^ bytes.len() as u64)
        })
    })
}

/// Validates `size` records with payloads of 128 bytes: checksum, archive and names.
pub fn validate(size: usize) -> Prepared {
    validate_with(size, 128)
}

/// Validates `size` records with payloads of 4 KiB.
pub fn validate_large(size: usize) -> Prepared {
    validate_with(size, 4096)
}

fn validate_with(size: usize, payload: usize) -> Prepared {
    // Aligned, one behind the other, as in a frame buffer.
    let (mut frame, mut encoder) = (AlignedVec::<ALIGNMENT>::new(), Encoder::default());
    for index in 0..size as u64 {
        let content = instance(index, payload, 0);
        let bytes = encoder.encode(DatumKey(7), RegisterId(index), &content).expect("it is valid");
        frame.extend_from_slice(bytes);
    }
    Prepared::new(size, move || {
        iter(&frame).fold(0, |check, record| {
            let record: Record<'_> = record.expect("just written");
            let client = record.validate().expect("just written");
            mix64(check ^ client.0)
        })
    })
}
