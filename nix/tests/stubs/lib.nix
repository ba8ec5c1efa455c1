# As much of nixpkgs' lib as nix/module.nix uses, for machines that have Nix and no nixpkgs: the module system with the types
# that the module names, and a few functions. Where nixpkgs is there, tests/nix takes its own lib instead, and both have to
# come to the same.
let
  inherit (builtins)
    all
    any
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    genList
    hasAttr
    head
    isAttrs
    isBool
    isFloat
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    mapAttrs
    stringLength
    substring
    tail
    ;

  last = list: elemAt list (length list - 1);
  nameValuePair = name: value: { inherit name value; };
  genAttrs = names: make: listToAttrs (map (name: nameValuePair name (make name)) names);
  unique = foldl' (found: one: if elem one found then found else found ++ [ one ]) [ ];
  optional = condition: one: if condition then [ one ] else [ ];
  isA = type: value: isAttrs value && value._type or null == type;
  show = path: concatStringsSep "." path;
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  hasSuffix =
    suffix: text:
    stringLength text >= stringLength suffix
    && substring (stringLength text - stringLength suffix) (stringLength suffix) text == suffix;

  # --- the module system ---

  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };

  # A definition with its conditions and priorities taken out: the values that hold, each with its priority.
  held =
    value:
    if isA "merge" value then
      concatMap held value.contents
    else if isA "if" value then
      (if value.condition then held value.content else [ ])
    else if isA "override" value then
      map (one: one // { inherit (value) priority; }) (held value.content)
    else
      [
        {
          priority = 100;
          inherit value;
        }
      ];

  # The same for a set of definitions, whose names have to be known before any condition is.
  pushed =
    set:
    if isA "merge" set then
      concatMap pushed set.contents
    else if isA "if" set then
      map (mapAttrs (_: mkIf set.condition)) (pushed set.content)
    else if isA "override" set then
      map (mapAttrs (_: mkOverride set.priority)) (pushed set.content)
    else
      [ set ];

  strongest =
    found:
    let
      lowest = foldl' (least: one: if one.priority < least then one.priority else least) 10000 found;
    in
    map (one: one.value) (filter (one: one.priority == lowest) found);

  merged =
    path: type: definitions:
    let
      values = strongest (concatMap held definitions);
      wrong = filter (value: !type.check value) values;
    in
    if wrong != [ ] then
      throw "A definition for option `${show path}' is not of type `${type.name}'."
    else
      type.merge path values;

  isHeld = definitions: concatMap held definitions != [ ];

  evalOption =
    path: option: definitions:
    if isHeld definitions then
      (
        if option.readOnly or false && length (concatMap held definitions) > 1 then
          throw "The option `${show path}' is read-only, but it's set multiple times."
        else
          merged path option.type definitions
      )
    else if option ? default then
      merged path option.type [ option.default ]
    else
      throw "The option `${show path}' is used but not defined.";

  # Options of several modules in one tree; an option that is declared twice is the later one's.
  joined =
    trees:
    let
      names = unique (concatMap attrNames trees);
      of = name: map (tree: tree.${name}) (filter (hasAttr name) trees);
    in
    genAttrs names (name: if any (isA "option") (of name) then last (of name) else joined (of name));

  evalTree =
    path: options: freeform: definitions:
    let
      sets = concatMap pushed definitions;
      of = name: map (set: set.${name}) (filter (hasAttr name) sets);
      declared = mapAttrs (
        name: option:
        if isA "option" option then
          evalOption (path ++ [ name ]) option (of name)
        else
          evalTree (path ++ [ name ]) option (if freeform == null then null else freeform) (of name)
      ) options;
      names = unique (concatMap attrNames sets);
      undeclared = filter (name: !(options ? ${name}) && isHeld (of name)) names;
    in
    declared
    // (
      if undeclared == [ ] then
        { }
      else if freeform == null then
        throw "The option `${show (path ++ [ (head undeclared) ])}' does not exist."
      else
        genAttrs undeclared (name: merged (path ++ [ name ]) freeform.element (of name))
    );

  evalModules =
    {
      modules,
      specialArgs ? { },
      path ? [ ],
    }:
    let
      call =
        module:
        let
          loaded = if isPath module || isString module then import module else module;
          found = if isFunction loaded then loaded arguments else loaded;
          rest = removeAttrs found [
            "imports"
            "options"
            "config"
            "freeformType"
          ];
          isPlain = !(found ? options || found ? config);
          self = {
            # A file that several modules import is taken once.
            key = if isPath module then toString module else null;
            options = found.options or { };
            config =
              if isPlain then
                rest
              else if rest == { } then
                found.config or { }
              else
                throw "Module has an unsupported attribute `${head (attrNames rest)}'.";
            freeform = found.freeformType or null;
          };
        in
        [ self ] ++ concatMap call (found.imports or [ ]);
      called = foldl' (
        found: one: if one.key != null && any (other: other.key == one.key) found then found else found ++ [ one ]
      ) [ ] (concatMap call modules);
      freeforms = filter (type: type != null) (map (module: module.freeform) called);
      arguments = specialArgs // {
        inherit config lib;
        options = joined (map (module: module.options) called);
      };
      config = evalTree path arguments.options (if freeforms == [ ] then null else last freeforms) (
        map (module: module.config) called
      );
    in
    {
      inherit config;
      inherit (arguments) options;
    };

  # --- types ---

  type = name: check: merge: { inherit name check merge; };
  equal =
    path: values:
    if all (value: value == head values) values then
      head values
    else
      throw "The option `${show path}' has conflicting definition values.";
  number = name: check: type name (value: isInt value && check value) equal;

  types = {
    bool = type "boolean" isBool equal;
    int = number "signed integer" (_: true);
    float = type "floating point number" isFloat equal;
    str = type "string" isString equal;
    path = type "absolute path" (value: isPath value || isString value && hasPrefix "/" value) equal;
    package = type "package" (value: isAttrs value && value.type or null == "derivation") equal;
    attrs = type "attribute set" isAttrs (_: foldl' (found: one: found // one) { });
    ints = {
      positive = number "positive integer" (value: value > 0);
      unsigned = number "unsigned integer" (value: value >= 0);
    };
    enum = values: type "one of ${toString values}" (value: elem value values) equal;
    nullOr =
      inner:
      type "null or ${inner.name}" (value: value == null || inner.check value) (
        path: values: if all (value: value == null) values then null else inner.merge path values
      );
    listOf =
      inner:
      type "list of ${inner.name}" isList (
        path: values: map (value: merged (path ++ [ "*" ]) inner [ value ]) (filter (one: isHeld [ one ]) (concatLists values))
      );
    attrsOf =
      inner:
      type "attribute set of ${inner.name}" isAttrs (
        path: values:
        let
          sets = concatMap pushed values;
          of = name: map (set: set.${name}) (filter (hasAttr name) sets);
          names = filter (name: isHeld (of name)) (unique (concatMap attrNames sets));
        in
        genAttrs names (name: merged (path ++ [ name ]) inner (of name))
      )
      // {
        element = inner;
      };
    oneOf =
      inners:
      type "one of several" (value: any (inner: inner.check value) inners) (
        path: values:
        let
          fitting = filter (inner: all inner.check values) inners;
        in
        if fitting == [ ] then equal path values else (head fitting).merge path values
      );
    anything = type "anything" (_: true) (
      path: values:
      if all isAttrs values && !any (value: value ? outPath) values then
        (types.attrsOf types.anything).merge path values
      else if all isList values then
        concatLists values
      else
        equal path values
    );
    submodule =
      module:
      type "submodule" (value: isAttrs value || isFunction value) (
        path: values:
        (evalModules {
          modules = [ module ] ++ map (value: if isFunction value then value else { config = value; }) values;
          specialArgs.name = last path;
          inherit path;
        }).config
      );
  };

  # --- functions ---

  filterAttrs =
    keep: set:
    listToAttrs (
      concatMap (name: optional (keep name set.${name}) (nameValuePair name set.${name})) (attrNames set)
    );
  splitString = separator: text: filter isString (builtins.split (escaped separator) text);
  escaped = builtins.replaceStrings [ "." ] [ "\\." ];

  lib = {
    inherit
      all
      any
      attrNames
      attrValues
      concatMap
      concatStringsSep
      evalModules
      filter
      filterAttrs
      foldl'
      genAttrs
      hasPrefix
      last
      length
      listToAttrs
      mapAttrs
      mkIf
      mkOverride
      nameValuePair
      optional
      splitString
      types
      unique
      ;
    fix =
      make:
      let
        made = make made;
      in
      made;
    hasAttrByPath = path: set: path == [ ] || (isAttrs set && set ? ${head path} && lib.hasAttrByPath (tail path) set.${head path});
    hasInfix = infix: text: length (builtins.split (escaped infix) text) > 1;
    head = head;
    importJSON = file: builtins.fromJSON (builtins.readFile file);
    importTOML = file: builtins.fromTOML (builtins.readFile file);
    init = list: genList (elemAt list) (length list - 1);
    literalExpression = text: text;
    mapAttrs' = change: set: listToAttrs (map (name: change name set.${name}) (attrNames set));
    mapAttrsToList = make: set: map (name: make name set.${name}) (attrNames set);
    mkDefault = mkOverride 1000;
    mkEnableOption =
      what:
      lib.mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${what}.";
      };
    mkForce = mkOverride 50;
    mkMerge = contents: {
      _type = "merge";
      inherit contents;
    };
    mkOption = option: option // { _type = "option"; };
    mod = dividend: divisor: dividend - divisor * (dividend / divisor);
    optionalAttrs = condition: set: if condition then set else { };
    optionalString = condition: text: if condition then text else "";
    removePrefix =
      prefix: text:
      if hasPrefix prefix text then substring (stringLength prefix) (stringLength text) text else text;
    removeSuffix =
      suffix: text:
      if hasSuffix suffix text then substring 0 (stringLength text - stringLength suffix) text else text;
    toInt = text: builtins.fromJSON text;
    licenses.asl20 = "Apache-2.0";
  };
in
lib
